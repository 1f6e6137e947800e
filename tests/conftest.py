"""Settings for all tests: properties are explored in the same order on every machine and in every run."""

from hypothesis import settings

settings.register_profile(
    "deterministic", derandomize=True, deadline=None, database=None, max_examples=50, stateful_step_count=40
)
settings.load_profile("deterministic")
