"""The HTTP API and the command line. Neither contains SQL, arq or storage code."""
