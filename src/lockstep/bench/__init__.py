"""Benchmarks of the program's own parts: what a user may run on his machine to see what he has."""
