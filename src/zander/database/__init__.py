"""All that speaks SQL: `storage.py` writes batches, `archive.py` and `past.py` answer, `migrations.py` prepares."""
