"""Faults that `benchmarks/faults.py` injects into real runs; each module has CASES of a kind."""
