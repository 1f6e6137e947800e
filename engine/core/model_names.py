"""What a model may be called: one rule for catalogues, configurations and requests."""

import re

MAX_NAME_CHARS = 128

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Names are folder names, label values of metrics and words on a command line, so they hold no other
characters."""
