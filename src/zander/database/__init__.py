"""All that speaks SQL: `writer.py` writes batches, `sessions.py` and `history.py` answer, `migrations.py` prepares."""
