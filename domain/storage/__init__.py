"""Bytes and paths behind one protocol; knows nothing of rows."""
