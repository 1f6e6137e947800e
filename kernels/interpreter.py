"""Runs launch functions in Triton's interpreter, in a child process: the kernels' results without a GPU.

Triton decides between compiling and interpreting when its decorators run, so one process cannot do both. The
child starts with `TRITON_INTERPRET` set, the parent stays in compiled mode, and no environment variable has
to be set by hand.

The interpreter is trusted only on float32 and float16. On bfloat16 it computes with the raw bits.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
import subprocess
import sys
from typing import Any, Self

import torch

_SERVE = "from tokenmux.kernels.interpreter import run_calls; run_calls()"


class Interpreter:
    """A child process with the interpreter; use it as a context manager.

    Calling it runs `module:function` there and returns the arguments as the function left them: tensors that
    it wrote come back in the returned dictionary, the caller's own are unchanged. What the function raises is
    raised.
    """

    def __enter__(self) -> Self:
        path = os.pathsep.join(filter(None, sys.path))
        self._child = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate()

    def __call__(self, function: str, **arguments: Any) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        sent = {name: _pack(value) for name, value in arguments.items()}
        pickle.dump((function, sent), self._child.stdin)
        self._child.stdin.flush()
        outcome = pickle.load(self._child.stdout)
        if isinstance(outcome, BaseException):
            raise outcome
        return {name: _unpack(value) for name, value in outcome.items()}


def run_calls() -> None:
    """The child's loop: reads calls from stdin and writes their outcomes to stdout, until stdin closes."""
    calls, outcomes = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # output of a kernel must not mix with the outcomes
    torch.set_num_threads(1)
    while True:
        try:
            function, sent = pickle.load(calls)
        except EOFError:
            return
        try:
            outcome: Any = _call(function, sent)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
            outcome = error
        pickle.dump(outcome, outcomes)
        outcomes.flush()


def _call(function: str, sent: dict[str, Any]) -> dict[str, Any]:
    module, name = function.split(":")
    arguments = {key: _unpack(value) for key, value in sent.items()}
    getattr(importlib.import_module(module), name)(**arguments)
    return {key: _pack(value) for key, value in arguments.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Packed:
    """A tensor between the processes: its storage and its view of it, including strides.

    The storage travels as a numpy array, which pickles as plain bytes.
    """

    storage: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


def _pack(value: Any) -> Any:
    match value:
        case torch.Tensor():
            flat = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
            return _Packed(flat.numpy(), tuple(value.shape), value.stride(), int(value.storage_offset()))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: _pack(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return type(value)(**fields)
        case _:
            return value


def _unpack(value: Any) -> Any:
    match value:
        case _Packed():
            return torch.from_numpy(value.storage.copy()).as_strided(value.shape, value.strides, value.offset)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: _unpack(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return type(value)(**fields)
        case _:
            return value
