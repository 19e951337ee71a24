"""Several nodes as one. `cluster.py` is the way in."""
