"""Frames of bytes, with file descriptors if necessary, over a Unix stream socket between two processes of
ours.

    | length: u32, little-endian | bytes |

A frame longer than `MAX_FRAME_BYTES` is refused before anything is allocated for it.
"""

import array
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tokenmux.messages.codec import MalformedMessage

MAX_FRAME_BYTES = 256 << 20
"""A prompt of 50 million tokens."""

MAX_DESCRIPTORS = 64
"""In one frame. Linux refuses more than 253."""

_LENGTH = struct.Struct("<I")

_READ_BYTES = 1 << 18


def framed(frame: bytes) -> bytes:
    """The bytes of a frame on the wire. Raises ValueError for one that is too long."""
    if len(frame) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(frame)} bytes is longer than {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(frame)) + frame


class FrameSocket:
    """One end of a pair. One thread may send while another receives."""

    def __init__(self, end: socket.socket) -> None:
        end.set_inheritable(False)
        self._end = end
        self.descriptors: deque[int] = deque()
        """Descriptors that came with the frames received so far, in order; who takes one closes it."""

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, frame: bytes) -> None:
        """Send a frame; blocks while the other end does not read. Raises OSError if the other end is gone,
        ValueError for a frame that is too long."""
        self._end.sendall(framed(frame))

    def receive(self) -> bytearray:
        """Wait for the next frame. Raises EOFError or OSError if the other end is gone, MalformedMessage
        for a frame that is too long; nothing can be received after that."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise MalformedMessage(f"a frame of {length} bytes, longer than {MAX_FRAME_BYTES}")
        return self._exactly(length)

    def stop_receiving(self) -> None:
        """End what waits in `receive`, now or later, with EOFError once it has what came before."""
        self._end.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self._end.close()
        while self.descriptors:
            os.close(self.descriptors.popleft())

    def _exactly(self, n_bytes: int) -> bytearray:
        received = bytearray(n_bytes)
        left = memoryview(received)
        while left:
            n = receive_into(self._end, left, self.descriptors)
            if n == 0:
                raise EOFError("the other end is gone")
            left = left[n:]
        return received


def receive_into(end: socket.socket, buffer: memoryview, descriptors: deque[int]) -> int:
    """Receive some bytes, and append the descriptors that come with them. Returns 0 at the end."""
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    n, ancillary, _, _ = end.recvmsg_into([buffer], space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            descriptors.extend(numbers)
    return n


@dataclass(slots=True)
class _Unsent:
    left: memoryview
    descriptors: list[int]


def _close_all(unsent: _Unsent) -> None:
    while unsent.descriptors:
        os.close(unsent.descriptors.pop())


class PatientSocket:
    """One end of a pair that never blocks: what the other end does not read yet waits here.

    `receive` returns the frames that are there; `send` sends what it can, `flush` the rest later.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        end.set_inheritable(False)
        self._end = end
        self._unsent: deque[_Unsent] = deque()
        self.n_unsent_bytes = 0
        self._received = bytearray()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._descriptors: deque[int] = deque()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a frame with descriptors, which may be closed afterwards. Raises OSError if the other end is
        gone, ValueError for a frame that is too long."""
        left = memoryview(framed(frame))
        if not self._unsent:
            n = self._send_now(left, descriptors)
            left = left[n:]
            if n:
                descriptors = ()
            if not left:
                return
        unsent = _Unsent(left, [])
        try:
            for descriptor in descriptors:
                unsent.descriptors.append(os.dup(descriptor))
        except OSError:
            _close_all(unsent)
            raise
        self._unsent.append(unsent)
        self.n_unsent_bytes += len(left)

    def flush(self) -> None:
        """Send what waits, as far as the other end reads. Raises OSError if it is gone."""
        while self._unsent:
            first = self._unsent[0]
            n = self._send_now(first.left, first.descriptors)
            if not n:
                return
            _close_all(first)
            first.left = first.left[n:]
            self.n_unsent_bytes -= n
            if not first.left:
                self._unsent.popleft()

    def _send_now(self, left: memoryview, descriptors: Sequence[int]) -> int:
        """Send what the other end has room for. Returns the number of bytes; descriptors go with the
        first."""
        try:
            if descriptors:
                return socket.send_fds(self._end, [left], descriptors)
            return self._end.send(left)
        except BlockingIOError:
            return 0

    def receive(self) -> list[bytes]:
        """The frames that have arrived in full. Raises EOFError or OSError if the other end is gone and
        nothing is left, MalformedMessage for a frame that is too long."""
        n = -1
        while n != 0:
            try:
                n = receive_into(self._end, self._buffer, self._descriptors)
            except BlockingIOError:
                break
            self._received += self._buffer[:n]
            if n < len(self._buffer):
                break
        while self._descriptors:  # no one sends descriptors this way
            os.close(self._descriptors.popleft())
        frames = self._taken()
        if n == 0 and not frames:
            raise EOFError("the other end is gone")
        return frames

    def close(self) -> None:
        self._end.close()
        while self._unsent:
            _close_all(self._unsent.popleft())

    def _taken(self) -> list[bytes]:
        """Remove the complete frames from what was received."""
        frames: list[bytes] = []
        received, start = self._received, 0
        while len(received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(received, start)
            if length > MAX_FRAME_BYTES:
                raise MalformedMessage(f"a frame of {length} bytes, longer than {MAX_FRAME_BYTES}")
            end = start + _LENGTH.size + length
            if len(received) < end:
                break
            frames.append(bytes(received[start + _LENGTH.size : end]))
            start = end
        del received[:start]
        return frames
