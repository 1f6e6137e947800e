"""The life of the worker process: starting, replacing it, finding what breaks it, saying when it is gone."""
