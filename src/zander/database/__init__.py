"""Everything that speaks SQL: `storage.py` writes, `archive.py` and `past.py` read, `migrations.py` prepares."""
