"""Frames of bytes over a stream socket between two processes of ours.

    | length: u32, little-endian | bytes |

A frame longer than `MAX_FRAME_BYTES` is refused before anything is allocated for it.
"""

import socket
import struct

from tokenmux.messages.codec import MalformedMessage

MAX_FRAME_BYTES = 256 << 20
"""A prompt of 50 million tokens."""

_LENGTH = struct.Struct("<I")


class FrameSocket:
    """One end of a pair. One thread may send while another receives."""

    def __init__(self, end: socket.socket) -> None:
        end.set_inheritable(False)
        self._end = end

    def send(self, frame: bytes) -> None:
        """Send a frame; blocks while the other end does not read. Raises OSError if the other end is gone,
        ValueError for a frame that is too long."""
        if len(frame) > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {len(frame)} bytes is longer than {MAX_FRAME_BYTES}")
        self._end.sendall(_LENGTH.pack(len(frame)) + frame)

    def receive(self) -> bytearray:
        """Wait for the next frame. Raises EOFError or OSError if the other end is gone, MalformedMessage
        for a frame that is too long; nothing can be received after that."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise MalformedMessage(f"a frame of {length} bytes, longer than {MAX_FRAME_BYTES}")
        return self._exactly(length)

    def close(self) -> None:
        self._end.close()

    def _exactly(self, n_bytes: int) -> bytearray:
        received = bytearray(n_bytes)
        left = memoryview(received)
        while left:
            n = self._end.recv_into(left)
            if n == 0:
                raise EOFError("the other end is gone")
            left = left[n:]
        return received
