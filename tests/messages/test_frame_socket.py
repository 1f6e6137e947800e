"""Frames over a real socket pair: whole, in order, bounded."""

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tokenmux.messages.codec import MalformedMessage
from tokenmux.messages.frame_socket import MAX_FRAME_BYTES, FrameSocket


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, FrameSocket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, FrameSocket(theirs)


def test_frames_arrive_whole_and_in_order(pair: tuple[socket.socket, FrameSocket]) -> None:
    """More than the socket holds, so that each passes in many pieces."""
    ours, receiver = pair
    frames = [b"", b"x", bytes(range(256)) * 20_000, b"last"]
    sender = FrameSocket(ours)
    sending = threading.Thread(target=lambda: [sender.send(frame) for frame in frames])
    sending.start()
    assert [bytes(receiver.receive()) for _ in frames] == frames
    sending.join()


def test_a_frame_that_is_too_long_is_refused_before_it_is_read(
    pair: tuple[socket.socket, FrameSocket],
) -> None:
    ours, receiver = pair
    ours.sendall(struct.pack("<I", MAX_FRAME_BYTES + 1))
    with pytest.raises(MalformedMessage, match="longer than"):
        receiver.receive()


def test_nobody_sends_such_a_frame(
    pair: tuple[socket.socket, FrameSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenmux.messages.frame_socket.MAX_FRAME_BYTES", 100)
    with pytest.raises(ValueError, match="101 bytes"):
        pair[1].send(bytes(101))


@pytest.mark.parametrize("cut", [b"", b"\x05\x00", b"\x05\x00\x00\x00ab"])
def test_the_end_of_the_other_side_is_the_end_wherever_it_comes(
    pair: tuple[socket.socket, FrameSocket], cut: bytes
) -> None:
    ours, receiver = pair
    ours.sendall(cut)
    ours.close()
    with pytest.raises(EOFError):
        receiver.receive()
