"""Messages through Redis: the only code of the domain that knows arq and Redis."""
