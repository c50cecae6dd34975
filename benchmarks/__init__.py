"""Measurements, each a command: `python -m benchmarks.NAME`. They drive the program from outside, as a user does."""
