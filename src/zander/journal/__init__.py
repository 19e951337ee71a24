"""From the moment a sample is taken in until it is committed: on the local disk, then in a batch. See `recorder.py`."""
