"""Child processes that run what models' authors wrote: encoding prompts, and reading checkpoints.

Each has limits of time and memory, and dies with the server.
"""
