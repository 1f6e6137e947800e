"""pool.yaml: what it may say, and that every mistake is told with its line and what is allowed."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.errors import ConfigError
from tokenmux.server.config import (
    MAX_MESSAGE_BYTES,
    Override,
    PoolConfig,
    check_config,
    load_config,
)
from tokenmux.server.front.api_keys import Scope
from tokenmux.server.grpc_api.malformed import GRPC_LIMIT_TIMES
from tokenmux.server.yaml_lines import parse
from tokenmux.server.yaml_values import MAX_COUNT

FULL = """\
listen: 0.0.0.0:50051
catalogue: kept
models:
  small: weights/small
  big:
    source: /weights/big.gguf
    pinned: true
    weight: 2
device:
  kind: cpu
  arena: 2GiB
  host_cache: 1.5 GiB
  host_kv: 512MiB
  slab: 8MiB
  prefill_chunk_tokens: 256
policy: slack
queue: {max_requests: 9, max_tokens: 32}
tenants: {team: {weight: 3}}
service_level: {ttft_s: 2, tpot_s: 0.05}
slow_reader: {buffer_tokens: 7, end_after_s: 3}
node: {max_restarts: 0, restart_window_s: 5}
tls:
  certificate: cert.pem
  private_key: key.pem
keys:
  - {name: team, scope: inference, file: team.key}
max_message: 1MiB
http_hosts: [models.example.org]
drain_s: 0
"""


def load(tmp_path: Path, text: str, *overrides: Override) -> PoolConfig:
    path = tmp_path / "pool.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def mistakes(tmp_path: Path, text: str, *overrides: Override) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]


def test_everything_can_be_said(tmp_path: Path) -> None:
    config = load(tmp_path, FULL)
    assert config.device.model_dump() == {
        "kind": "cpu", "arena": 2 << 30, "host_cache": 3 << 29, "host_kv": 512 << 20, "slab": 8 << 20,
        "prefill_chunk_tokens": 256, "paged_kv": "exact", "count": 1, "gpu": None,
    }  # fmt: skip
    assert config.catalogue == tmp_path / "kept"
    assert config.models["small"].source == tmp_path / "weights/small"
    assert config.models["big"].source == Path("/weights/big.gguf")
    assert [config.models[name].pinned for name in ("small", "big")] == [False, True]
    assert [config.models[name].weight for name in ("small", "big")] == [1.0, 2.0]
    assert {name: tenant.weight for name, tenant in config.tenants.items()} == {"team": 3.0}
    assert config.tls is not None
    assert config.tls.private_key == tmp_path / "key.pem"
    assert (config.keys[0].scope, config.keys[0].file) == (Scope.INFERENCE, tmp_path / "team.key")
    assert config.http_hosts == ("models.example.org",)
    assert (config.node.max_restarts, config.max_message, config.drain_s) == (0, 1 << 20, 0)


def test_grpc_can_read_four_times_the_largest_message() -> None:
    assert MAX_MESSAGE_BYTES * GRPC_LIMIT_TIMES <= MAX_COUNT


def test_nothing_needs_to_be_said(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert config.listen == "127.0.0.1:50051"
    assert config.catalogue.is_absolute()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lisen: x\n",
         "pool.yaml:1: lisen: there is no such key; did you mean 'listen'? allowed: catalogue, device,"),
        ("\ndevice:\n  arean: 2GiB\n",
         "pool.yaml:3: device.arean: there is no such key; did you mean 'arena'?"),
        ("models:\n  a:\n    source: x\n    pined: true\n",
         "pool.yaml:4: models.a.pined: there is no such key; did you"),
        ("models:\n  a:\n    pinned: true\n", "pool.yaml:2: models.a.source: is missing"),
        ("models:\n  a b: x\n", "pool.yaml:2: models.a b: 'a b' is not a model name"),
        ("models:\n  a: 3\n", "pool.yaml:2: models.a: should be a valid dictionary"),
        ("keys:\n- {name: a, scope: root, file: f}\n",
         "pool.yaml:2: keys.0.scope: should be 'inference', 'metrics' or 'admin', and"),
        ("keys:\n- {name: a, scope: admin, file: f, fiel: g}\n",
         "pool.yaml:2: keys.0.fiel: there is no such key; did you"),
        ("keys:\n- {name: a, file: f}\n", "pool.yaml:2: keys.0.scope: is missing"),
        ("device:\n  kind: gpu\n", "pool.yaml:2: device.kind: should be 'cpu' or 'cuda', and is 'gpu'"),
        ("device:\n  paged_kv: int4\n",
         "pool.yaml:2: device.paged_kv: should be 'exact' or 'int8', and is 'int4'"),
        ("device:\n  paged_kv: int8\n",
         "pool.yaml:2: device.paged_kv: int8 is computed by a GPU's kernel, and device.kind is cpu: leave"),
        ("policy: magic\n",
         "pool.yaml:1: policy: no policy magic; a server offers slack, request-level, aegaeon"),
        ("policy: oracle\n",
         "pool.yaml:1: policy: policy oracle knows how long every answer will be, which only a simulation"),
        ("policy: dedicated\n",
         "pool.yaml:1: policy: policy dedicated gives every model an instance of its own"),
        ("device:\n  arena: two\n",
         "pool.yaml:2: device.arena: 'two' is not a size: write a number with KiB, MiB,"),
        ("device:\n  arena: 0\n", "pool.yaml:2: device.arena: should be greater than 0, and is 0"),
        ("device: 7\n", "pool.yaml:1: device: should be a valid dictionary"),
        ("device:\n  arena: 1GiB\ndevices:\n- kind: cpu\n",
         "pool.yaml:2: device: `devices` is given too: give one of them. Add arena to an entry of"),
        ("devices: []\n", "pool.yaml:1: devices: there must be at least one, such as `- kind: cpu`"),
        ("devices: 3\n", "pool.yaml:1: devices: should be a valid tuple, and is 3"),
        ("devices:\n- count: 0\n",
         "pool.yaml:2: devices.0.count: should be greater than or equal to 1, and is 0"),
        ("devices:\n- count: 1000\n- count: 1000\n",
         "pool.yaml:1: devices: these are 2000, and a pool has at most 1024"),
        ("devices:\n- arena: 1GiB\n- arean: 1GiB\n",
         "pool.yaml:3: devices.1.arean: there is no such key; did you mean 'arena'? allowed: arena, count"),
        ("devices:\n- host_kv: 1GiB\n", "pool.yaml:2: devices.0.host_kv: there is no such key; allowed: ar"),
        ("devices:\n- kind: cuda\n  gpu: first\n",
         "pool.yaml:3: devices.0.gpu: 'first' is not a GPU: write its index, such as 0, or its UUID"),
        ("devices:\n- {kind: cuda, gpu: 1}\n- {kind: cuda, gpu: '1'}\n",
         "pool.yaml:3: devices.1.gpu: devices.0 has GPU 1 already: each needs one of its own"),
        ("devices:\n- {kind: cuda, gpu: GPU-12, count: 2}\n",
         "pool.yaml:2: devices.0.count: one GPU is one device, and devices.0.gpu names it: leave out"),
        ("devices:\n- gpu: 0\n",
         "pool.yaml:2: devices.0.gpu: only a GPU has a number, and devices.0.kind is cpu: leave it out"),
        ("devices:\n- paged_kv: int8\n",
         "pool.yaml:2: devices.0.paged_kv: int8 is computed by a GPU's kernel, and devices.0.kind is cpu"),
        ("devices:\n- {kind: cuda}\n- {kind: cpu}\n",
         "pool.yaml:1: devices: their kind differs: cpu and cuda. A request may go on at any device"),
        ("devices:\n- {prefill_chunk_tokens: 64}\n- {arena: 1GiB}\n",
         "pool.yaml:1: devices: their prefill_chunk_tokens differs: 64 and None. A request may go on"),
        ("host:\n  kvs: 1GiB\n",
         "pool.yaml:2: host.kvs: there is no such key; did you mean 'kv'? allowed: cache, kv"),
        ("tenants: {team: {weight: 0}}\n",
         "pool.yaml:1: tenants.team.weight: should be greater than or equal to 0.01, and"),
        ("tenants:\n  team: {wait: 1}\n",
         "pool.yaml:2: tenants.team.wait: there is no such key; did you mean 'weight'? allowed: weight"),
        ("queue: {max_requests: 0}\n",
         "pool.yaml:1: queue.max_requests: should be greater than or equal to 1, and is 0"),
        ("service_level:\n  ttft_s: .nan\n", "pool.yaml:2: service_level.ttft_s: should be a finite number"),
        ("http_hosts: ['a:80']\n", "pool.yaml:1: http_hosts.0: 'a:80' is not the name of a host:"),
        ("tls:\n  certificate: x\n", "pool.yaml:1: tls.private_key: is missing"),
        ("listen: 50051\n", "pool.yaml:1: listen: should be a valid string"),
        ("listen: here\n",
         "pool.yaml:1: listen: 'here' is not an address: write HOST:PORT, such as 127.0.0.1:50051"),
        ("listen: '[::1:5'\n", "pool.yaml:1: listen: '[::1:5' is not an address"),
        ("listen: 127.0.0.1:99999\n", "pool.yaml:1: listen: '127.0.0.1:99999' is not an address"),
        ("drain_s: 1\nlisten: 0.0.0.0:1\n",
         "pool.yaml:2: listen: 0.0.0.0:1 can be reached from other machines, which needs `tls`"),
        ("metrics: 0.0.0.0:9090\n",
         "pool.yaml:1: metrics: 0.0.0.0:9090 can be reached from other machines, which needs `tls` and"),
        ("metrics: 127.0.0.1:50051\n",
         "pool.yaml:1: metrics: 127.0.0.1:50051 is taken by `listen` or `http`: choose another port"),
        ("http: 127.0.0.1:8000\nmetrics: 127.0.0.1:8000\n",
         "pool.yaml:2: metrics: 127.0.0.1:8000 is taken by `listen` or `http`"),
        ("a: [\n", "pool.yaml:2: this is not valid YAML"),
        ("a: 1\n\tb: 2\n", "pool.yaml:2: this is not valid YAML"),
        ("drain_s: 1\nlisten: x:1\ndrain_s: 2\n", "pool.yaml:3: 'drain_s' is given twice, first on line 1"),
        ("- a\n", "pool.yaml:1: there must be keys and values"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (told, *_) = mistakes(tmp_path, text)
    assert told.startswith(message)


ALIASES = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listen: 2026-99-99", ":1: this is not valid YAML: this is read as timestamp but is not one"),
        ("\nlisten: !!timestamp x", ":2: this is not valid YAML"),
        ("queue: {max_requests: !!int x}", ":1: this is not valid YAML: this is read as int"),
        ("queue: {max_requests: !!bool x}", ":1: this is not valid YAML: this is read as bool"),
        ("queue: {max_requests: " + "9" * 5000 + "}", ":1: this is not valid YAML: this is read as int"),
        ("listen: a\x01b", "character 9 is U+0001"),
        ("models: &a {b: *a}", "more than 32 levels deep"),
        ("models: &a [*a]", "more than 32 levels deep"),
        ("a: " + "[" * 3000 + "]" * 3000, "levels deep"),
        ("k0: &k0 [x]\n" + ALIASES, "more than 100,000 values"),
        (
            "catalogue: ~no-such-user/x",
            ":1: catalogue: '~no-such-user/x' cannot be resolved here: write it in full",
        ),
        ('catalogue: "a\\0b"', ":1: catalogue: 'a\\x00b' is not a path"),
        ('models: {a: "\\ud800"}', ":1: models.a.source: '\\ud800' cannot be resolved here"),
        ("listen: 127.0.0.1:\u0663", "is not an address"),
        ("listen: 127.0.0.1:" + "9" * 5000, "is not an address"),
    ],
)
def test_odd_files_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)


@given(
    st.recursive(
        st.sampled_from(
            [
                *[
                    "&a",
                    "*a",
                    "!!int",
                    "!!float",
                    "!!bool",
                    "!!timestamp",
                    "!!binary",
                    "!!set",
                    "!!omap",
                    "x",
                    "1",
                    "-1",
                    "1e9",
                    "~",
                    "~x",
                    "0x",
                    "0o9",
                    "1:99",
                    "''",
                    "<<",
                    "<<:",
                ],
                "2026-13-45",
                "2026-01-01T99:00:00Z",
                "2026-01-01T00:00:00+99:99",
                "9" * 4400,
                ".inf",
                "\x07",
                "\u202e",
            ]
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map(lambda parts: f"[{', '.join(parts)}]"),
            st.tuples(inner, inner).map(lambda pair: f"{{{pair[0]}: {pair[1]}}}"),
            st.tuples(inner, inner).map(" ".join),
        ),
    ),
    st.sampled_from(
        [
            "catalogue",
            "listen",
            "models",
            "device",
            "devices",
            "host",
            "keys",
            "tls",
            "policy",
            "tenants",
            "text",
            "z",
        ]
    ),
)
def test_any_file_is_a_configuration_or_mistakes(value: str, key: str) -> None:
    with contextlib.suppress(ConfigError):
        check_config(parse(f"{key}: {value}", "pool.yaml"), Path("/"))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = mistakes(tmp_path, "drain_s: -1\nqueue:\n  max_tokens: x\npolicy: a\n")
    assert sorted(line.split(": ")[0] for line in told) == ["pool.yaml:1", "pool.yaml:3", "pool.yaml:4"]


def test_two_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    text = "keys:\n- {name: a, scope: admin, file: f}\n- {name: a, scope: inference, file: g}\n"
    assert mistakes(tmp_path, text) == ["pool.yaml:3: keys.1.name: there are two keys named 'a'"]


def test_flags_go_before_the_file_and_are_named_when_wrong(tmp_path: Path) -> None:
    override = Override(("device", "arena"), "1MiB", "--arena")
    config = load(tmp_path, "device:\n  arena: 2GiB\n  slab: 1MiB\n", override)
    assert (config.device.arena, config.device.slab) == (1 << 20, 1 << 20)
    wrong = Override(("device", "arena"), "much", "--arena")
    (told,) = mistakes(tmp_path, "drain_s: 1\n", wrong)
    assert told.startswith("command line: --arena: device.arena: 'much' is not a size")
    assert load_config(None, [override]).device.arena == 1 << 20


def test_devices_and_their_host_memory_are_said_in_two_ways(tmp_path: Path) -> None:
    listed = load(
        tmp_path,
        "devices:\n- {kind: cuda, arena: 1GiB, count: 2, paged_kv: int8}\n"
        "- {kind: cuda, gpu: 3, paged_kv: int8}\n"
        "host: {cache: 5GiB, kv: 6GiB}\n",
    )
    (first, entry), (second, gpu) = listed.all_devices
    assert (first, entry.kind, entry.count, entry.arena) == (("devices", 0), "cuda", 2, 1 << 30)
    assert (second, gpu.kind, gpu.count, gpu.gpu, gpu.paged_kv) == (("devices", 1), "cuda", 1, "3", "int8")
    assert (listed.host_cache, listed.host_kv) == (5 << 30, 6 << 30)
    single = load(tmp_path, "device: {host_cache: 5GiB, host_kv: 6GiB}\n")
    assert (single.host_cache, single.host_kv) == (5 << 30, 6 << 30)
    assert single.all_devices == ((("device",), single.device),)
    flag = Override(("host", "kv"), "7GiB", "--host-kv")
    assert load(tmp_path, "device: {host_kv: 6GiB}\n", flag).host_kv == 7 << 30


def test_a_flag_for_one_device_beside_a_list_of_devices_is_named(tmp_path: Path) -> None:
    (told,) = mistakes(tmp_path, "devices: [{kind: cpu}]\n", Override(("device", "count"), 2, "--devices"))
    assert told.startswith("command line: --devices: device: `devices` is given too: give one of them")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"listen: \xe4\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read: it is not UTF-8 text: .* at byte 8"):
        load_config(tmp_path / "latin.yaml")
