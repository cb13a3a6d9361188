"""The command line, `cistern ...`: a client of the HTTP API, and the commands that run Cistern."""
