"""A model whose weights cannot be read for ever, in a whole node: its requests fail with the reason, the
others are served."""

import os
from pathlib import Path

import pytest

from tests.node.served_node import device, served
from tests.node.test_exact_tokens import submits
from tokenmux.core.request import FinishReason
from tokenmux.device import reader
from tokenmux.messages.reports import Finished
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue, Entry


def entries(folder: Path) -> list[Entry]:
    catalogue = Catalogue(folder / "catalogue")
    return [
        catalogue.register_folder(name, tiny.create(family, folder / name))
        for name, family in (("hung", "gpt2"), ("good", "llama"))
    ]


@pytest.mark.parametrize("kind", ["image", "manifest"])
def test_weights_behind_a_pipe_that_nobody_writes_to(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PATIENCE_S", 2.0)
    hung, good = entries(tmp_path)
    file = hung.manifest.file if kind == "image" else next(hung.path.glob("*manifest*"))
    file.unlink()
    os.mkfifo(file)
    with served([hung, good], device([hung, good], n_slabs=100)) as body:
        for submit in submits([hung, good], 4):
            body.send(submit)
        body.until_ended(4)
        for submit in submits([hung, good], 4):
            end = body.ends[submit.request.id]
            assert isinstance(end, Finished)
            if submit.request.model == hung.name:
                assert end.reason is FinishReason.FAILED
                assert "still hangs" in end.detail or "made no progress for 2 s" in end.detail
            else:
                assert end.reason is not FinishReason.FAILED
    os.close(
        os.open(file, os.O_RDWR | os.O_NONBLOCK)
    )  # whoever still waits for the pipe hears that there is nothing
