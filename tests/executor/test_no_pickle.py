"""No pickle passes between the front and a worker: what reads one can be made to run anything."""

from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.executor.test_worker import into
from tokenmux.core.facts import DeviceFacts, HostFacts
from tokenmux.core.request import Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.executor.assemble import WorkerSetup
from tokenmux.executor.worker import ProcessWorker
from tokenmux.messages.commands import AskTrace, Order, Register, Submit, Ticket
from tokenmux.messages.reports import Acknowledged, Broken, Finished, Report, Tokens, Traced
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue

WAIT_S = 60.0
MB = 1 << 20

POISON = """
import _pickle, pickle, sys

def poisoned(name):
    original = getattr(_pickle, name)
    def call(*arguments, **options):
        frame = sys._getframe(1)
        while frame is not None and "importlib" not in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is None:
            raise AssertionError("a pickle was used")
        return original(*arguments, **options)  # what libraries do while they are imported (jinja2) is theirs
    return call

for name in ("dump", "dumps", "load", "loads"):
    setattr(pickle, name, poisoned(name))
for name in ("Pickler", "Unpickler"):
    setattr(pickle, name, type(name, (getattr(_pickle, name),), {"__init__": poisoned(name)}))
"""


def test_no_pickle_passes_between_the_front_and_a_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In both processes the first one fails: in the child from its start, since it finds this
    `sitecustomize`."""
    catalogue = Catalogue(tmp_path / "catalogue")
    entry = catalogue.register_folder("llama", tiny.create("llama", tmp_path / "checkpoint"))
    facts = DeviceFacts("cpu", entry.facts.n_bytes + MB, MB, 1e10, 1e10, 1e10, 1e11, slab_bytes=MB // 16)
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("pickle", "_pickle"):
        for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
            monkeypatch.setattr(f"{module}.{name}", None)
    inbox: SimpleQueue[Report] = SimpleQueue()
    worker = ProcessWorker(WorkerSetup(facts, HostFacts(64 * MB, 1e9)), into(inbox))
    try:
        worker.send(Order(Ticket(1), Register(entry.facts, str(entry.path))))
        request = Request(RequestId("r"), entry.facts.id, 3, 4, 0.0)
        worker.send(Order(Ticket(2), Submit(request, (1, 2, 3), Sampling(temperature=0.5, seed=1))))
        seen: list[Report] = []
        while not isinstance(report := inbox.get(timeout=WAIT_S), Finished):
            assert not isinstance(report, Broken), report.detail
            seen.append(report)
        worker.send(Order(Ticket(3), AskTrace(60.0)))
        while not isinstance(traced := inbox.get(timeout=WAIT_S), Traced):
            pass
    finally:
        worker.kill()
        worker.close()
    assert [report.error for report in seen if isinstance(report, Acknowledged)] == [""]
    assert sum(len(report.token_ids) for report in seen if isinstance(report, Tokens)) == 4
    assert traced.spans
