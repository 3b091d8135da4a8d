"""Measurements, their results, and the tables and figures made of them: `python -m benchmarks list`."""
