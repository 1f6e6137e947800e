"""Standard streams that every command can use, whatever the terminal, the shell or a service manager gave."""

import io
import os
import sys


def make_usable() -> None:
    """Open what is closed, and have what an encoding other than UTF-8 lacks written as question marks.

    A descriptor that stays closed would be taken by the next file or connection, and Python has None in its
    place, so that a command ends in the middle with an error that names neither.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - stays open as long as the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="replace")
