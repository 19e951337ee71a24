"""Attacks on a live server, one after the other, and what each does to it and to a neighbour.

`make attack ARGS="--only headers,silent --seconds 5"`; what each is, and what it must come to, stands in `attacks.py`.
"""
