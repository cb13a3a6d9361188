"""Who may use the API: keys, their roles, and the principal that a key stands for."""
