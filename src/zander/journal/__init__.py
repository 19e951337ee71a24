"""The way of a sample from taking in to the commit: on the local disk, then in a batch. See `recorder.py`."""
