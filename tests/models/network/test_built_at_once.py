"""Skeletons that two threads of an executor build at the same time: a fetch, and an image that it maps."""

from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.network.skeleton import Skeleton


def test_tied_weights_stay_tied_while_another_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Catalogue(tmp_path).register_folder("model", tiny.create("llama", tmp_path / "files"))
    assert entry.config.tie_word_embeddings
    inside, built = Event(), Event()
    from_config = AutoModelForCausalLM.from_config

    def slow_the_first_time(*arguments: Any, **named: Any) -> Any:
        if not inside.is_set():
            inside.set()
            built.wait(0.5)
        return from_config(*arguments, **named)

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", slow_the_first_time)
    slow: list[Skeleton] = []
    thread = Thread(target=lambda: slow.append(entry.skeleton()))
    thread.start()
    assert inside.wait(10.0)
    second = entry.skeleton()
    built.set()
    thread.join()
    for skeleton in (*slow, second):
        weights = skeleton.model
        assert weights.get_output_embeddings().weight is weights.get_input_embeddings().weight
