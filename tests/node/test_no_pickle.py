"""No pickle passes between the front, a node and an executor: what reads one can be made to run anything."""

from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.node.test_node_process import into
from tokenmux.core.facts import DeviceFacts, HostFacts
from tokenmux.core.request import Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import AskTrace, Order, Register, Submit, Ticket
from tokenmux.messages.reports import Acknowledged, Broken, Finished, NodeStatus, Report, Tokens, Traced
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.node.node_process import NodeProcess

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


def test_no_pickle_passes_between_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In all three processes the first one fails: in the children from their start, since they find this
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
    setup = NodeSetup((DeviceSetup(facts),), HostFacts(64 * MB, 1e9), facts.host_kv_bytes)
    node = NodeProcess(setup, into(inbox))
    try:
        node.send(Order(Ticket(1), Register(entry.facts, str(entry.path))))
        request = Request(RequestId("r"), entry.facts.id, 3, 4, 0.0)
        node.send(Order(Ticket(2), Submit(request, (1, 2, 3), Sampling(temperature=0.5, seed=1))))
        seen: list[Report] = []
        while not isinstance(report := inbox.get(timeout=WAIT_S), Finished):
            assert not isinstance(report, Broken), report.detail
            assert not isinstance(report, NodeStatus) or not report.devices[0].fault
            seen.append(report)
        node.send(Order(Ticket(3), AskTrace(60.0)))
        while not isinstance(traced := inbox.get(timeout=WAIT_S), Traced):
            pass
    finally:
        node.kill()
        node.close()
    assert [report.error for report in seen if isinstance(report, Acknowledged)] == [""]
    assert sum(len(report.token_ids) for report in seen if isinstance(report, Tokens)) == 4
    assert traced.spans
