"""Compiles the kernels of registered models ahead of their first steps, in a separate process.

A kernel that is missing from Triton's cache is compiled at its first launch: up to a second for each of nine,
on the compute channel's thread, while every model waits. Compiling ahead cannot be done in a node, because
it takes Triton's driver away from launches. So a child process fills the cache, and the node only loads
what it finds there.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Condition, Thread

from tokenmux.core.errors import TokenmuxError
from tokenmux.processes.orphans import die_with_parent

_log = logging.getLogger(__name__)

TIMEOUT_S = 300.0
"""Time limit for all models that were registered at the same time. A child that takes longer is ended; a step
then compiles what it needs."""

Compile = Callable[[Sequence[Path]], None]
"""Fills the cache for models in these folders of a catalogue. Raises TokenmuxError that says what went
wrong."""


class Warmer:
    """One thread that calls `compile` for models as they are registered, for all that wait at the same
    time."""

    def __init__(self, compile: Compile) -> None:
        self._compile = compile
        self._waiting: list[Path] = []
        self._unfinished: set[Path] = set()
        self._changed = Condition()
        # Not joined at the end: the child dies with this process.
        Thread(target=self._run, name="tokenmux-warmer", daemon=True).start()

    def begin(self, path: Path) -> None:
        """The model in this folder of a catalogue was registered. Returns at once."""
        with self._changed:
            if path not in self._unfinished:
                self._unfinished.add(path)
                self._waiting.append(path)
                self._changed.notify_all()

    def wait(self, path: Path) -> None:
        """Return when the model's kernels are in the cache, or could not be compiled, which the log says."""
        with self._changed:
            self._changed.wait_for(lambda: path not in self._unfinished)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                taken, self._waiting = self._waiting, []
            try:
                self._compile(taken)
            except Exception as error:  # noqa: BLE001 - whatever it is, a step compiles what it needs
                _log.warning("kernels are compiled at their first launch: %s", error)
            finally:
                with self._changed:
                    self._unfinished.difference_update(taken)
                    self._changed.notify_all()


def compile_in_a_child(capability: int, *, paged_int8: bool = False, timeout_s: float = TIMEOUT_S) -> Compile:
    """Compile for a device of `capability` (major * 10 + minor); with `paged_int8` also the kernels that
    page KV in int8."""

    def compile(paths: Sequence[Path]) -> None:
        arguments = (os.getpid(), capability, paged_int8, [str(path) for path in paths])
        code = f"from tokenmux.executor import warming; warming.child{arguments!r}"
        try:
            # This thread waits for the child and outlives it, so that the kernel's signal at its end is not
            # too early.
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TokenmuxError(f"compiling took longer than {timeout_s:.0f} s") from None
        for line in done.stdout.splitlines():
            _log.info("%s", line)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
            raise TokenmuxError(f"the compiling process failed: {last[0]}")

    return compile


def child(parent: int, capability: int, paged_int8: bool, paths: Sequence[str]) -> None:
    """The child's program."""
    die_with_parent(parent)
    os.nice(5)  # a server's steps have priority
    warm_entries([Path(path) for path in paths], capability, paged_int8=paged_int8)


def warm_entries(paths: Sequence[Path], capability: int, *, paged_int8: bool = False) -> None:
    """Compile into Triton's cache the kernels that the entries in these folders launch. An entry that
    cannot be read does not affect the others."""
    from tokenmux.kernels import warm
    from tokenmux.models.catalogue.entry import Entry
    from tokenmux.models.network.kernel_shapes import model_shapes
    from tokenmux.models.weights.image import DTYPES

    shapes: list[warm.ModelShape] = []
    for path in paths:
        try:
            entry = Entry.load(path)
            shapes += model_shapes(
                entry.config,
                DTYPES[entry.manifest.dtype],
                entry.facts.kv.block_size,
                trust_remote_code=entry.trust_remote_code,
            )
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything, and that is this model's trouble
            print(f"{path.name}: its kernels are not compiled ahead: {error}")
    warmed = warm.warm(capability, shapes, lambda _done, _total: None, paged_int8=paged_int8)
    print(
        f"kernels of {len(paths)} models for sm_{capability}: {warmed.compiled} of {warmed.forms} compiled "
        f"in {warmed.seconds:.1f} s, cache {warmed.cache}"
    )
