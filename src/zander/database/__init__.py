"""SQL: connections, migrations, the transaction that writes a batch, and reading by session, position or time."""
