"""Benchmarks: each program runs alone (`python -m benchmarks.NAME [--quick]`) and ends with one JSON
document."""
