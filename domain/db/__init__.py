"""PostgreSQL: transactions, base classes of tables, building blocks of statements, pages, and migrations."""
