"""Several nodes as one, over Redis. `cluster.py` is the way in."""
