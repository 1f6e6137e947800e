"""Which model names are valid: one rule for catalogues, configurations and requests."""

import re

MAX_NAME_CHARS = 128

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Names become folder names, label values of metrics and words on a command line, so no other characters are
allowed."""
