"""Storage backends: bytes and paths behind one driver protocol, without any knowledge of the database."""
