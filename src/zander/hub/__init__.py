"""Order of events: what relays send is taken in, recorded and given out, in one synchronous call. See `hub.py`."""
