"""A node that only draws tokens: one for every live stream, at a fixed rate, out of a given text.

It speaks a real node's messages over a real socket from a process of its own, so that a front has all to do
that it has to do beside a real one.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread

from tokenmux.core.facts import FIRST_NODE
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.messages.codec import ORDERS, REPORTS
from tokenmux.messages.commands import Cancel, Load, Order, Pin, Register, Resize, Submit, Unload, Unregister
from tokenmux.messages.frame_socket import FrameSocket
from tokenmux.messages.reports import Acknowledged, Alive, Finished, Report, Reports, Tokens

BEAT_S = 1.0


class NullNode:
    """The front's side of the process. `on_reports` is called from a thread of this object."""

    def __init__(
        self, step_s: float, token_ids: Sequence[int], on_reports: Callable[[Reports], None]
    ) -> None:
        """Every `step_s` seconds each stream gets its next token, the i-th of `token_ids`, over and over."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = (theirs.fileno(), step_s, list(token_ids))
            code = f"from benchmarks.null_node import draw; draw{arguments!r}"
            self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(theirs.fileno(),))
        self._frames = FrameSocket(ours)
        self._on_reports = on_reports
        self._unsent: SimpleQueue[bytes] = SimpleQueue()
        for target in (self._read, self._send):
            Thread(target=target, name=f"null-node{target.__name__}", daemon=True).start()

    def send(self, order: Order) -> None:
        self._unsent.put(ORDERS.encode(order))

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._frames.close()

    def _send(self) -> None:
        try:
            while True:
                self._frames.send(self._unsent.get())
        except OSError:
            pass

    def _read(self) -> None:
        try:
            while True:
                self._on_reports(REPORTS.decode(self._frames.receive()))
        except (EOFError, OSError):
            pass


def draw(descriptor: int, step_s: float, token_ids: Sequence[int]) -> None:
    """The process's program: draw until the front is gone."""
    with socket.socket(fileno=descriptor) as end:
        try:
            _Drawing(FrameSocket(end), step_s, token_ids).run()
        except OSError:
            pass
    os._exit(0)


class _Drawing:
    def __init__(self, frames: FrameSocket, step_s: float, token_ids: Sequence[int]) -> None:
        self._frames = frames
        self._step_s = step_s
        self._token_ids = token_ids
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._drawn: dict[RequestId, int] = {}
        """Tokens drawn for each live stream."""
        self._limits: dict[RequestId, int] = {}
        Thread(target=self._read, name="null-node-orders", daemon=True).start()

    def run(self) -> None:
        self._report([Alive()])
        step_s = beat_s = time.monotonic()
        while True:
            step_s = max(step_s + self._step_s, time.monotonic() - self._step_s)
            self._answer_until(step_s)
            self._step()
            if step_s - beat_s >= BEAT_S:
                beat_s = step_s
                self._report([Alive()])

    def _answer_until(self, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                order = self._orders.get(timeout=left_s)
            except Empty:
                return
            self._answer(order)

    def _answer(self, order: Order) -> None:
        match order.command:
            case Submit(request):
                self._drawn[request.id], self._limits[request.id] = 0, request.max_tokens
                self._report([PhaseChanged(request.id, RequestPhase.RUNNING)])
            case Cancel(request_id, reason):
                if self._drawn.pop(request_id, None) is not None:
                    self._report([Finished(request_id, reason, time.monotonic())])
            case Register() | Unregister() | Load() | Unload() | Pin() | Resize():
                self._report([Acknowledged(order.ticket)])

    def _step(self) -> None:
        """Draw a token for every stream: one message, as of an engine's step."""
        now_s, reports = time.monotonic(), list[Report]()
        for request, index in list(self._drawn.items()):
            reports.append(Tokens(request, index, (self._token_ids[index % len(self._token_ids)],), now_s))
            self._drawn[request] += 1
            if index + 1 == self._limits[request]:
                reports.append(Finished(request, FinishReason.LENGTH, now_s))
                del self._drawn[request], self._limits[request]
        if reports:
            self._report(reports)

    def _report(self, reports: Sequence[Report]) -> None:
        self._frames.send(REPORTS.encode(Reports(FIRST_NODE, reports)))

    def _read(self) -> None:
        try:
            while True:
                self._orders.put(ORDERS.decode(self._frames.receive()))
        except (EOFError, OSError):
            os._exit(0)
