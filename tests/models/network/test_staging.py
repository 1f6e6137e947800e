"""Arrays on their way to a device that copies late: nothing is overwritten under a copy, and waiting is
rare."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.models.network.staging import HostCarrier, Staging


class LateStream(HostCarrier):
    """Copies read their source when somebody waits, and not before: as late as the order of the stream
    permits."""

    def __init__(self) -> None:
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.n_waits = 0
        self.n_locked = 0

    def locked(self, n_bytes: int) -> torch.Tensor:
        assert not self.given, "memory is given back under a copy"
        self.n_locked += 1
        return super().locked(n_bytes)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.given.append((target, source))

    def settle(self) -> None:
        self.n_waits += 1
        for target, source in self.given:
            target.copy_(source)
        self.given.clear()


ARRAYS = st.dictionaries(
    st.sampled_from("abcd"),
    st.tuples(st.sampled_from([np.int64, np.int32, np.float32]), st.integers(0, 40), st.integers(1, 3)),
    min_size=1,
)


@given(
    steps=st.lists(st.one_of(ARRAYS, st.integers(1, 100)), max_size=12),
    n_bytes=st.sampled_from([16, 256, 4096]),
)
def test_what_is_sent_arrives_however_late_the_stream_is(steps: list[object], n_bytes: int) -> None:
    stream = LateStream()
    staging = Staging(stream, n_bytes)
    expected: list[tuple[torch.Tensor, np.ndarray]] = []
    value = 0
    for step in steps:
        if isinstance(step, int):
            there = torch.arange(value, value + step)
            assert staging.fetch(there).tolist() == there.tolist()
            value += step
            continue
        assert isinstance(step, dict)
        arrays = {}
        for name, (dtype, rows, columns) in step.items():
            arrays[name] = np.arange(value, value + rows * columns).astype(dtype).reshape(rows, columns)
            value += rows * columns
        sent = staging.upload(arrays)
        expected += [(sent[name], array) for name, array in arrays.items()]
    stream.settle()
    for there, array in expected:
        assert there.shape == array.shape
        np.testing.assert_array_equal(there.numpy(), array)


def test_a_decode_step_makes_no_memory_and_waits_once() -> None:
    """Its tables and draws go in, its tokens come back."""
    stream = LateStream()
    staging = Staging(stream)
    for _ in range(1_000):
        staging.upload({"table": np.zeros((64, 100), np.int64)})
        staging.upload({"seed": np.zeros(64, np.int64)})
        staging.fetch(torch.zeros(64, dtype=torch.int64))
    assert (stream.n_waits, stream.n_locked) == (1_000, 1)
