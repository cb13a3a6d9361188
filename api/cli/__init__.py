"""The command line ``cistern``: commands that run Cistern, and a client of the HTTP API."""
