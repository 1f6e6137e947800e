"""Kernels over block-major KV caches, and the plain torch references that define their results.

One folder per kernel: `reference.py` is the truth in plain torch, `kernel.py` the Triton device code,
`launch.py` the strictly typed host side. Importing this package, or any `reference`, never imports Triton: a
machine without it can still run, read and test everything that defines the results.

Nothing here knows about models, requests or schedules, or imports `tokenmux`.
"""
