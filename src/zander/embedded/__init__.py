"""For a newcomer on one machine: a PostgreSQL of its own, and children that die with their parent."""
