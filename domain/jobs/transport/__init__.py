"""Messages through Redis: the only package of the domain that uses arq and Redis."""
