"""Zander: raw EEG from edge relays, at once to everyone who listens, and all of it to TimescaleDB."""
