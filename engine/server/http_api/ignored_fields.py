"""The header that tells a client which fields of its body were ignored."""

import re
from collections.abc import Sequence

from tokenmux.server.http_api.body_fields import Lenient, ignored_names

MAX_IGNORED_NAMES = 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def ignored_header(body: Lenient) -> Sequence[tuple[bytes, bytes]]:
    """The header, if there is anything to tell."""
    ignored = [name for name in ignored_names(body) if _PLAIN_NAME.fullmatch(name)]
    if not ignored:
        return ()
    return ((b"x-tokenmux-ignored", ", ".join(ignored[:MAX_IGNORED_NAMES]).encode()),)
