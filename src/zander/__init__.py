"""Zander, a broker for live EEG."""
