"""Subscribers, and what waits for each of them."""
