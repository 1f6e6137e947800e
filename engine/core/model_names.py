"""Which model names are valid: one rule for catalogues, configurations and requests."""

import re

MAX_NAME_CHARS = 128

MODEL_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}")
"""Names become folder names, label values of metrics and words on a command line, so no other characters are
allowed."""


def model_name_fault(name: str) -> str | None:
    """What is wrong with a model name, and what is allowed; None if it is valid."""
    if MODEL_NAME.fullmatch(name):
        return None
    return (
        f"{name!r} is not a model name: use letters, digits and . _ -, beginning with a letter or digit, "
        f"at most {MAX_NAME_CHARS} characters"
    )
