"""Version 1 of the API: code that `proto/generate.py` wrote from the .proto files beside it."""
