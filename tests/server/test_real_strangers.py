"""A whole server with a model whose chat template never ends, and one whose author's code is trusted."""

import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from transformers import dynamic_module_utils

from tests.server.test_serve import real_server
from tokenmux.client import CallFailed, Client
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.server.children.served_catalogue import ServedCatalogue

pytestmark = pytest.mark.timeout(300)

ENDLESS = (
    "{% if messages|length > 1 %}{% for i in range(100000) %}{% for j in range(100000) %}{% endfor "
    "%}{% endfor %}{% endif %}"
    "{{ messages[0].content }}"
)
LONG = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]


def _with_template(folder: Path, template: str) -> Path:
    tiny.create("llama", folder)
    for path in folder.glob("chat_template*"):
        path.unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


def test_an_endless_template_holds_up_neither_others_nor_the_end(tmp_path: Path) -> None:
    bad = _with_template(tmp_path / "endless", ENDLESS)
    with (
        real_server(tmp_path, "text: {seconds: 1}\n") as (process, address),
        Client(address) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        client.models.register("endless", str(bad))
        stuck = [threads.submit(client.chat, "endless", LONG, max_tokens=1) for _ in range(4)]
        for _ in range(20):
            assert client.generate("llama", "hello", max_tokens=1).token_ids
        for call in stuck:
            with pytest.raises(
                CallFailed, match=r"took longer than 1 s for this prompt \(`text.seconds`\)"
            ) as caught:
                call.result()
            assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        again = threads.submit(client.chat, "endless", LONG, max_tokens=1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        with pytest.raises(CallFailed):
            again.result()


def test_opening_an_entry_runs_nothing_of_its_author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the front does with a model: its code would write a file if it ran."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tiny.create("llama", tmp_path / "model")
    trace = tmp_path / "it-ran"
    (folder / "configuration_x.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig\n"
        f"Path({str(trace)!r}).touch()\n"
        "class XConfig(LlamaConfig):\n    model_type = 'x'\n"
    )
    path = folder / "config.json"
    document = json.loads(path.read_text()) | {
        "model_type": "x",
        "auto_map": {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XModel"},
    }
    path.write_text(json.dumps(document))
    (folder / "modeling_x.py").write_text(
        "from transformers import LlamaForCausalLM\n"
        "from .configuration_x import XConfig\n"
        "class XModel(LlamaForCausalLM):\n    config_class = XConfig\n"
    )
    Catalogue(tmp_path / "catalogue").register_folder("x", folder, trust_remote_code=True)
    assert trace.exists(), "registration runs it"
    trace.unlink()
    entry = ServedCatalogue(tmp_path / "catalogue").get("x")
    tokenizer = entry.tokenizer()
    assert tokenizer.facts.can_chat
    assert tokenizer.detokenizer().push([70])
    assert entry.facts.max_context == 512
    assert not trace.exists()
    assert entry.config.model_type == "x"
    assert trace.exists(), "the node runs it"
