"""The file systems of volumes: what nodes report of them, and who grows them."""
