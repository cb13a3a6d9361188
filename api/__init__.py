"""The front of the house: HTTP, and the command line. Nothing of SQL, arq or storage."""
