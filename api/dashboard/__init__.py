"""The dashboard: pages that the API serves, for people. Whatever they change, they change by requests to the API."""
