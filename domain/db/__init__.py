"""PostgreSQL: transactions, table base classes, SQL helpers, pagination and migrations."""
