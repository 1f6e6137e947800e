"""`tokenmux pull` against a model hub: a server on the loopback interface that answers as the real one
does."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "some/tiny-llama"


class Hub(BaseHTTPRequestHandler):
    """One repository with one commit: what it holds, and its files."""

    def __init__(self, folder: Path, served: list[str], *args: object) -> None:
        self._folder = folder
        self._served = served
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if path in (f"/api/models/{REPOSITORY}", f"/api/models/{REPOSITORY}/revision/main"):
            self._send(json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode(), with_body)
            return
        if path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT}
                for file in sorted(self._folder.iterdir())
            ]
            self._send(json.dumps(files).encode(), with_body)
            return
        prefix = f"/{REPOSITORY}/resolve/{COMMIT}/"
        file = self._folder / path.removeprefix(prefix)
        if not path.startswith(prefix) or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        if with_body:
            self._served.append(file.name)
        self._send(file.read_bytes(), with_body)

    def _send(self, body: bytes, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.create("llama", tmp_path_factory.mktemp("llama"))
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    (folder / "modeling_evil.py").write_text("raise SystemExit('not wanted')")
    return folder


@pytest.fixture
def served() -> list[str]:
    """Names of the files that were downloaded."""
    return []


@pytest.fixture
def hub(checkpoint: Path, served: list[str]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, checkpoint, served)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pull(hub: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(root / "hub"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "tokenmux.cli", "pull", "--catalogue", str(root / "catalogue")]
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_model_of_the_hub_is_downloaded_and_registered(hub: str, served: list[str], tmp_path: Path) -> None:
    done = pull(hub, tmp_path, REPOSITORY)
    assert done.returncode == 0, done.stderr
    entry = Catalogue(tmp_path / "catalogue").stored.get("tiny-llama")
    assert entry.facts.n_bytes > 0
    assert {"config.json", "model.safetensors"} <= set(served)
    assert not {"pytorch_model.bin", "modeling_evil.py"} & set(served)


def test_what_the_hub_does_not_have_is_said_in_one_line(hub: str, tmp_path: Path) -> None:
    done = pull(hub, tmp_path, "some/other")
    assert done.returncode != 0
    assert "some/other: not on the hub" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
