"""Messages between the front and its child processes: a JSON object and raw bytes beside it. Never a pickle.

    | bytes of JSON: u32 | bytes beside it: u32 | JSON | bytes |

The sender cannot make the reader run code or allocate at will: a frame over `MAX_BYTES`, or one whose JSON is
not an object, means a broken child.
"""

import asyncio
import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

MAX_BYTES = 256 << 20
"""The longest part of a frame."""

_HEAD = struct.Struct("<II")


class BrokenFrame(Exception):
    """What was read is not a message."""


def pack(header: Mapping[str, object], payload: bytes = b"") -> bytes:
    """One frame. Raises ValueError for values that JSON cannot hold."""
    text = json.dumps(header, allow_nan=False).encode()
    return _HEAD.pack(len(text), len(payload)) + text + payload


async def read_async(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """The next frame. Raises BrokenFrame, and EOFError (`asyncio.IncompleteReadError`) at the end of the
    stream."""
    sizes = _sizes(await reader.readexactly(_HEAD.size))
    return _header(await reader.readexactly(sizes[0])), await reader.readexactly(sizes[1])


def read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, None at the end of the stream. Raises BrokenFrame."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    n_header, n_payload = _sizes(head)
    return _header(stream.read(n_header)), stream.read(n_payload)


def _sizes(head: bytes) -> tuple[int, int]:
    n_header, n_payload = _HEAD.unpack(head)
    if max(n_header, n_payload) > MAX_BYTES:
        raise BrokenFrame(f"a frame of {n_header} and {n_payload} bytes")
    return n_header, n_payload


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenFrame(f"not JSON: {error}") from None
    if not isinstance(header, dict):
        raise BrokenFrame("not an object")
    return header
