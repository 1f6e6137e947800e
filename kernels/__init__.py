"""Kernels over block-major KV caches, and the plain torch references that say what they must compute.

One folder a kernel: `reference.py` is the truth in plain torch, `kernel.py` the Triton device code,
`launch.py` the strictly typed host side. Importing this package, or any `reference`, never imports Triton: a
machine without it can still run, read and test everything that defines the results.

Nothing here knows about models, requests or schedules, and nothing here imports `tokenmux`.
"""
