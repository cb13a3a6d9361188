"""Webhooks: send what happens in a project to the URLs that its owners have registered, by jobs of their own kind."""
