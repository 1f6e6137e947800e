"""From configuration to a server: keys and certificates, and one whole server with real models, killed and
stopped."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from tests.server.harness import ServerThread, serving
from tests.server.scraping import Figures, scrape
from tokenmux.client import CallFailed, Client, Delta, Finish
from tokenmux.core.errors import ConfigError
from tokenmux.core.progress import no_progress
from tokenmux.core.request import ServiceLevel
from tokenmux.executor.device_speeds import Speeds
from tokenmux.messages.setups import NodeSetup
from tokenmux.models.catalogue import tiny
from tokenmux.server.app import Transport
from tokenmux.server.config import KeyConfig, PoolConfig, TlsConfig, load_config
from tokenmux.server.front.api_keys import Scope
from tokenmux.server.pool_setup import MeasuredDevice, node_setup
from tokenmux.server.serve import (
    limits_of,
    open_catalogue,
    read_keys,
    read_transport,
    warn_of_open_files,
    weights_of,
)


def setup_of(config: PoolConfig, speeds: Speeds) -> NodeSetup:
    return node_setup(config, [MeasuredDevice(config.device, speeds)])


def test_the_configuration_reaches_the_parts() -> None:
    config = PoolConfig.model_validate(
        {
            "device": {"arena": 10, "host_cache": 20, "host_kv": 30, "slab": 40, "prefill_chunk_tokens": 50},
            "queue": {"max_requests": 1, "max_choices": 9},
            "models": {"a": {"source": "a", "weight": 4}, "b": "b"},
            "tenants": {"team": {"weight": 3}},
            "slow_reader": {"buffer_tokens": 2, "end_after_s": 3},
            "node": {"max_restarts": 4, "restart_window_s": 5, "silent_s": 6, "still_s": 7},
            "policy": "request-level",
            "service_level": {"ttft_s": 8, "tpot_s": 9},
        },
        context=Path.cwd(),
    )
    setup = setup_of(config, Speeds(1.0, 2.0, 3.0))
    (entry,) = setup.devices
    device = entry.facts
    assert (device.arena_bytes, setup.host.cache_bytes, device.host_kv_bytes, setup.host_kv_bytes) == (
        10,
        20,
        30,
        30,
    )
    assert (device.slab_bytes, device.prefill_chunk_tokens) == (40, 50)
    assert (device.copy_in_bytes_per_s, device.memory_bytes_per_s, device.flops_per_s) == (1.0, 2.0, 3.0)
    weights = weights_of(config)
    assert (weights.of_tenant("team"), weights.of_tenant("other")) == (3, 1)
    assert (weights.of_model("a"), weights.of_model("b")) == (4, 1)
    assert (setup.max_restarts, setup.restart_window_s) == (4, 5)
    assert (setup.policy, setup.silent_s, setup.service) == ("request-level", 6, ServiceLevel(8, 9))
    limits = limits_of(config, setup)
    assert (limits.still_s, limits.patience.silent_s) == (7, 6)
    assert (limits.max_requests, limits.buffer_tokens, limits.unread_s) == (1, 2, 3)
    assert (limits.restarts.n, limits.restarts.window_s) == (4, 5)


def with_keys(*files: Path) -> PoolConfig:
    keys = tuple(
        KeyConfig.model_construct(name=f"key{i}", scope=Scope.ADMIN, file=file)
        for i, file in enumerate(files)
    )
    return PoolConfig.model_construct(keys=keys, tls=None)


def test_keys_are_read_from_their_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("open sesame\n")
    caller = read_keys(with_keys(tmp_path / "a")).caller("Bearer open sesame")
    assert caller is not None
    assert (caller.name, caller.scope) == ("key0", Scope.ADMIN)


def test_a_key_file_that_is_missing_empty_or_double_is_named(tmp_path: Path) -> None:
    for name, text in (("empty", " \n"), ("a", "x"), ("b", "x\n")):
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="none cannot be read"):
        read_keys(with_keys(tmp_path / "none"))
    with pytest.raises(ConfigError, match="the file of the key 'key0' is empty"):
        read_keys(with_keys(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="'key1' is the same as another one"):
        read_keys(with_keys(tmp_path / "a", tmp_path / "b"))


@pytest.mark.parametrize("content", [b"one\ntwo\n", b"\xff\xfe\n", "s\u00e9".encode(), b"\xef\xbb\xbfa"])
def test_a_key_that_no_client_can_send_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError, match="no client can send the key 'key0': write one line"):
        read_keys(with_keys(tmp_path / "a"))


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(ConfigError, match=r"keys\.file: /dev/zero has more than 4096 bytes"):
        read_keys(with_keys(Path("/dev/zero")))


def test_secrets_that_are_open_to_all_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, mode in (("mine", 0o640), ("open", 0o644)):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(mode)
    warn_of_open_files(with_keys(tmp_path / "mine", tmp_path / "open"))
    (said,) = caplog.messages
    assert f"{tmp_path / 'open'}: chmod 600 it" in said


def test_a_certificate_that_is_missing_is_named(tmp_path: Path) -> None:
    tls = TlsConfig.model_construct(certificate=tmp_path / "none.pem", private_key=tmp_path / "none.key")
    with pytest.raises(ConfigError, match=r"tls\.certificate: .*none\.pem cannot be read"):
        read_transport(PoolConfig.model_construct(tls=tls))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_is_spoken_with_the_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
         certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    transport = Transport(certificate=certificate.read_bytes(), private_key=key.read_bytes())
    with ServerThread(lambda: serving(transport=transport)) as server:
        with Client(server.served.target, ca_file=certificate) as client:
            assert client.generate("letters", "abc", max_tokens=2).text == "de"
        with Client(server.served.target) as client, pytest.raises(CallFailed):
            client.generate("letters", "abc")


@pytest.mark.parametrize(
    ("arena", "speeds", "expected"),
    [
        (None, Speeds(1.0, 2.0, 3.0), 2 << 30),
        (None, Speeds(1.0, 2.0, 3.0, "H100", free_bytes=100_000), 85_000),
        ("4KiB", Speeds(1.0, 2.0, 3.0, "H100", free_bytes=100_000), 4096),
    ],
)
def test_the_arena_is_what_was_said_or_most_of_what_is_free(
    arena: str | None, speeds: Speeds, expected: int
) -> None:
    config = PoolConfig.model_validate({"device": {"arena": arena}}, context=Path.cwd())
    (device,) = setup_of(config, speeds).devices
    assert (device.facts.arena_bytes, device.facts.name) == (expected, speeds.name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_is_not_a_folder_is_no_catalogue(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "models").write_text("")
    for name in ("file", "folder"):
        (tmp_path / "pool.yaml").write_text(f"catalogue: {name}\n")
        config = load_config(tmp_path / "pool.yaml")
        with pytest.raises(ConfigError, match="is not a folder: name one"):
            open_catalogue(config, no_progress)


def test_a_gpu_that_is_not_there_is_noticed_before_anything_is_converted(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(
        "listen: 127.0.0.1:0\ndevice: {kind: cuda}\nmodels: {a: nothing}\ncatalogue: kept\n"
    )
    command = [sys.executable, "-m", "tokenmux.cli", "serve", "-c", str(tmp_path / "pool.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "device.kind: cuda needs" in done.stderr
    assert "kind: cpu" in done.stderr
    assert "Traceback" not in done.stderr


DEVICE = "device: {arena: 8MiB, host_cache: 32MiB, host_kv: 8MiB, slab: 1MiB, prefill_chunk_tokens: 32}\n"


@contextmanager
def real_server(
    folder: Path,
    more: str = "",
    device: str = DEVICE,
    families: Sequence[str] = ("llama", "gpt2"),
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`tokenmux serve` over small random models of these families, with more lines in its pool.yaml, also in
    place of those about its device; yields the process and its address."""
    for family in families:
        tiny.create(family, folder / family, dtype=dtype)
    models = ", ".join(f"{family}: {family}" for family in families)
    (folder / "pool.yaml").write_text(
        f"listen: 127.0.0.1:0\ncatalogue: kept\nmodels: {{{models}}}\n" + device + more
    )
    with serve_process(folder) as served:
        yield served


@contextmanager
def serve_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`tokenmux serve` with the pool.yaml of a folder, once it listens; killed at the end."""
    command = [sys.executable, "-m", "tokenmux.cli", "serve", "--config", str(folder / "pool.yaml")]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening on " in line, (folder / "log").read_text()
        yield process, line.split("listening on ")[1].strip()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_node_killed_in_mid_stream_costs_no_token_and_a_signal_ends_the_server(tmp_path: Path) -> None:
    metrics = "metrics: 127.0.0.1:0\n"
    with real_server(tmp_path, metrics) as (process, address), Client(address) as client:
        assert process.stdout is not None
        url = process.stdout.readline().split("metrics for Prometheus at ")[1].strip()
        options = {"max_tokens": 120, "temperature": 1.0, "seed": 5, "ignore_end_tokens": True}
        alone = client.generate("llama", "Once upon a time", **options)  # type: ignore[arg-type]
        assert client.chat(
            "gpt2", [{"role": "user", "content": "hi"}], max_tokens=4
        ).finish.n_completion_tokens
        before = figures_like_the_status(client, url)

        tokens: list[int] = []
        finish = None
        killed = False
        for event in client.stream("llama", "Once upon a time", **options):  # type: ignore[arg-type]
            match event:
                case Delta():
                    tokens += event.token_ids
                    if len(tokens) >= 10 and not killed:
                        os.kill(node_of(process.pid), signal.SIGKILL)
                        killed = True
                case Finish():
                    finish = event
        assert killed
        assert finish is not None
        assert client.pool.status().n_restarts == 1
        assert tuple(tokens) == alone.token_ids
        after = scrape(url)
        assert after["request_success_total", "length", "llama"] == 2
        assert after["node_recoveries_total",] == 1
        counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
        assert [key for key in counters if after[key] < before[key]] == []

        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def figures_like_the_status(client: Client, url: str) -> Figures:
    """Figures for Prometheus once each of two models has had one request, after comparing them with the
    status."""
    told = client.pool.watch(timeout_s=60)
    status = next(now for now in told if all(m.service.n_requests == 1 and m.swap_bytes for m in now.models))
    figures = scrape(url)
    for model in status.models:
        assert figures["generation_tokens_total", model.name] == model.service.n_tokens > 0
        assert figures["generation_tokens_on_time_total", model.name] == model.service.n_tokens_on_time
        assert figures["time_to_first_token_seconds_count", model.name] == 1
        assert figures["swap_bytes_total", model.name] == model.swap_bytes > 0
        assert figures["gpu_seconds_total", model.name] == model.service.gpu_s > 0
    return figures


def node_of(pid: int) -> int:
    """The node among the children of the server."""
    (node,) = _children(pid, "node_main")
    return node


def executors_of(pid: int) -> list[int]:
    """The processes of the server's devices, oldest first."""
    return sorted(_children(node_of(pid), "executor_main"))


def _children(pid: int, module: str) -> list[int]:
    """Children that run this module. Not by /proc/PID/task/*/children: it may leave some out while others are
    started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and module in (process / "cmdline").read_text():
                found.append(int(process.name))
    return found
