"""The end of a socket pair that never blocks: what waits, what arrives, and whose descriptors are open."""

import errno
import os
import resource
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.messages import frame_socket
from tokenmux.messages.codec import MalformedMessage
from tokenmux.messages.frame_socket import MAX_FRAME_BYTES, FrameSocket, PatientSocket, framed

Pair = tuple[PatientSocket, FrameSocket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A patient end, and the other end as frames and as bytes."""
    ours, theirs = socket.socketpair()
    patient, other = PatientSocket(ours), FrameSocket(theirs)
    yield patient, other, theirs
    patient.close()
    other.close()


def n_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"something")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def send_the_rest(patient: PatientSocket, other: FrameSocket, n: int) -> list[bytes]:
    """Have another thread read `n` frames, and send what waits as it does."""
    received: list[bytes] = []
    reader = Thread(target=lambda: received.extend(bytes(other.receive()) for _ in range(n)))
    reader.start()
    while patient.n_unsent_bytes:
        select.select([], [patient], [], 10.0)
        patient.flush()
    reader.join(10.0)
    return received


def test_what_the_other_end_does_not_read_waits_and_arrives_whole_and_in_order(pair: Pair) -> None:
    patient, other, _ = pair
    frames = [bytes([i]) * (1 << (i % 19)) for i in range(40)]
    for frame in frames:
        patient.send(frame)
    assert patient.n_unsent_bytes > 0
    assert send_the_rest(patient, other, len(frames)) == frames


def test_nothing_there_is_no_frames(pair: Pair) -> None:
    assert pair[0].receive() == []


@given(
    st.lists(st.binary(max_size=40), max_size=12),
    st.lists(st.integers(0, 400), max_size=12),
    st.sampled_from([1, 3, 16, 1 << 18]),
)
def test_frames_arrive_wherever_the_stream_is_cut(
    frames: list[bytes], cuts: list[int], n_at_once: int
) -> None:
    ours, theirs = socket.socketpair()
    patient = PatientSocket(ours)
    patient._buffer = patient._buffer[:n_at_once]
    wire = b"".join(map(framed, frames))
    received: list[bytes] = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(wire)], strict=True):
        theirs.sendall(wire[start:end])
        while got := patient.receive():
            received += got
    theirs.close()
    assert received == frames
    with pytest.raises(EOFError):
        patient.receive()
    patient.close()


def test_frames_that_came_before_the_end_are_received_first(pair: Pair) -> None:
    patient, _, theirs = pair
    theirs.sendall(framed(b"last words"))
    theirs.shutdown(socket.SHUT_RDWR)
    assert patient.receive() == [b"last words"]
    with pytest.raises(EOFError):
        patient.receive()


def test_a_dead_end_is_an_error_when_sending(pair: Pair) -> None:
    patient, other, _ = pair
    other.close()
    with pytest.raises(OSError, match="pipe"):
        patient.send(b"anyone there?")


@pytest.mark.parametrize("before", [[], [b"fine"]])
def test_a_frame_that_is_too_long_is_malformed(pair: Pair, before: list[bytes]) -> None:
    patient, _, theirs = pair
    theirs.sendall(b"".join(map(framed, before)) + struct.pack("<I", MAX_FRAME_BYTES + 1))
    with pytest.raises(MalformedMessage, match="longer than"):
        patient.receive()


def test_such_a_frame_is_not_sent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_socket, "MAX_FRAME_BYTES", 100)
    with pytest.raises(ValueError, match="101 bytes"):
        pair[0].send(bytes(101))
    assert pair[0].n_unsent_bytes == 0


def test_descriptors_arrive_with_their_frame_and_may_be_closed_by_the_sender(pair: Pair, file: int) -> None:
    patient, other, _ = pair
    mine = os.dup(file)
    patient.send(b"no descriptor")
    patient.send(b"two", [mine, mine])
    os.close(mine)
    assert other.receive() == b"no descriptor"
    assert not other.descriptors
    assert other.receive() == b"two"
    contents = [os.pread(descriptor, 100, 0) for descriptor in other.descriptors]
    assert contents == [b"something"] * 2


def test_descriptors_wait_with_their_frame_and_none_is_left_open(pair: Pair, file: int) -> None:
    patient, other, _ = pair
    before = n_open()
    patient.send(bytes(4 << 20))
    mine = os.dup(file)
    patient.send(b"with descriptor", [mine])
    os.close(mine)
    assert n_open() == before + 1, "the copy that waits"
    assert send_the_rest(patient, other, 2)[1] == b"with descriptor"
    assert os.pread(other.descriptors[0], 100, 0) == b"something"
    os.close(other.descriptors.popleft())
    assert n_open() == before


def test_closing_closes_what_was_not_sent(pair: Pair, file: int) -> None:
    patient, _, _ = pair
    before = n_open()
    patient.send(bytes(4 << 20))
    patient.send(b"never", [file, file])
    assert n_open() == before + 2
    patient.close()
    assert n_open() == before - 1


def test_what_waits_needs_descriptors_of_its_own_and_none_is_lost(pair: Pair, file: int) -> None:
    patient, other, _ = pair
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(file)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, limits[1]))
    os.close(spare)
    try:
        patient.send(b"at once", [file])
        patient.send(bytes(4 << 20))
        with pytest.raises(OSError, match="open files") as caught:
            patient.send(b"too many", [file] * 200)
        assert caught.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    patient.send(b"next")
    assert other.receive() == b"at once"
    assert send_the_rest(patient, other, 2)[1] == b"next"


def test_descriptors_that_nobody_asked_for_are_closed(pair: Pair, file: int) -> None:
    patient, _, theirs = pair
    before = n_open()
    socket.send_fds(theirs, [framed(b"a gift")], [file])
    assert patient.receive() == [b"a gift"]
    assert n_open() == before
