"""The volume plugin of Docker and Podman: a client of the API, as the command line is."""
