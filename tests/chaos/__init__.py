"""Random faults on a live system of two nodes, PostgreSQL and Valkey, and a checker that knows only the promises.

`make chaos ARGS="--rounds 100 --seed 7"`; what was broken, and how a failure is replayed, stands in what it prints.
"""
