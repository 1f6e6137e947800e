"""From a validated `PoolConfig` to a running server: reads keys and certificates, builds the parts and
connects them.

Only this module of `tokenmux.server` knows the real node and the real catalogue.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from tokenmux.core.errors import ConfigError, NotServable
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelFacts
from tokenmux.core.progress import Progress
from tokenmux.messages.reports import Reports
from tokenmux.messages.setups import NodeSetup, PresentDevices
from tokenmux.node.node_process import NodeProcess
from tokenmux.node.prompt_prefixes import PromptPrefixes
from tokenmux.processes import garbage_collection
from tokenmux.processes.monotonic_clock import MonotonicClock
from tokenmux.processes.restarts import RestartLimits
from tokenmux.scheduler.memory.capacity import check_model, check_request
from tokenmux.server.app import Transport, running, until_signalled
from tokenmux.server.children.encoder_children import EncoderChildren, TextLimits
from tokenmux.server.children.grammar_children import GrammarChildren
from tokenmux.server.children.served_catalogue import RegistrationLimits, ServedCatalogue
from tokenmux.server.config import PoolConfig
from tokenmux.server.front.api_keys import ApiKeys, Key
from tokenmux.server.front.front import Front
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.request_rules import Defaults
from tokenmux.server.front.tenants import Weights
from tokenmux.server.front.traffic import TraceFile, TrafficRecorder
from tokenmux.server.http_api.http_server import HttpTransport
from tokenmux.server.listening import Reservation, check_pair, tls_context
from tokenmux.server.machine import Machine
from tokenmux.server.nodes.node_protocol import NodeFactory, RunningNode
from tokenmux.server.nodes.supervisor import Patience
from tokenmux.server.pool_setup import level_of
from tokenmux.server.stopping import LastResort

logger = logging.getLogger(__name__)

STARTING_S = 300.0
"""Time limit until a node serves: it loads libraries and creates a context on a GPU."""
MAX_KEY_BYTES, MAX_PEM_BYTES = 4096, 1 << 20
"""Largest file of an API key, and of a certificate or its private key."""
TOUCHED_BYTES_PER_S = 100e6
"""Rate at which a node's memory is touched if the system has to make room for it."""


def open_catalogue(config: PoolConfig, progress: Progress) -> ServedCatalogue:
    """The catalogue with the models of the configuration, converted if necessary. May take minutes.

    A model that cannot be converted is refused, and the others are served. Raises ConfigError first if a
    device is missing, or memory; NotServable if the configuration names models, and the catalogue holds none
    that can be served.
    """
    Machine().check(config)
    read_keys(config)
    read_transport(config)
    check_catalogue(config.catalogue)
    catalogue = ServedCatalogue(config.catalogue, registration_limits_of(config))
    missing = sorted(config.models.keys() - set(catalogue.names()))
    refusals = catalogue.bring_in(((name, config.models[name].source) for name in missing), progress)
    if config.models and set(catalogue.names()) <= refusals.keys():
        name, reason = next(iter(refusals.items()))
        others = f" ({len(refusals) - 1} more are refused)" if len(refusals) > 1 else ""
        raise NotServable(f"no model can be served; {name}: {reason}{others}")
    return catalogue


def check_catalogue(folder: Path) -> None:
    """Raise ConfigError if something else stands where the folder of converted models should be: a server
    would offer nothing, and could never register anything."""
    for path in (folder, folder / "models"):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"catalogue: {path} is not a folder: name one, which need not exist yet")


async def serve(
    config: PoolConfig,
    catalogue: ServedCatalogue,
    say: Callable[[str], None],
    reservations: Sequence[Reservation],
) -> None:
    """Serve the catalogue until SIGTERM or SIGINT. `say` is called with lines that tell when and where the
    server answers.

    `reservations` hold the addresses until then. Raises ConfigError, DoesNotFit if no model fits, and what
    starting the node raises.
    """
    last_resort = LastResort(config.drain_s)
    keys, transport = read_keys(config), read_transport(config)
    warn_of_open_files(config)
    machine = Machine()
    blocks = (entry.facts.kv.block_bytes for entry in catalogue.entries())
    setup = await asyncio.to_thread(machine.setup_of, config, max(blocks, default=0))
    recorder = recorder_of(config, MonotonicClock().now_s(), PromptPrefixes(setup))
    encoder = EncoderChildren(text_limits_of(config))
    front = Front(
        node_factory(setup),
        catalogue,
        DeviceCapacity(setup.host),
        setup.devices,
        machine,
        pinned=[name for name, model in config.models.items() if model.pinned],
        limits=limits_of(config, setup),
        defaults=Defaults(config.queue.max_tokens, level_of(config)),
        weights=weights_of(config),
        recorder=recorder,
        encoder=encoder,
        grammars=GrammarChildren(),
        keys=keys,
    )
    encoder.begin()
    for reservation in reservations:
        reservation.give_up()
    try:
        http, metrics = (http_transport(config, address) for address in (config.http, config.metrics))
        async with running(front, transport, http, metrics) as server:
            at = f"{config.listen.rpartition(':')[0]}:{server.port}"
            # A reader of that line may send a signal at once.
            signalled = asyncio.ensure_future(until_signalled(front, config.drain_s, last_resort))
            await asyncio.sleep(0)
            garbage_collection.settle()
            say(f"serving {sum(served.refusal is None for served in front.models)} models, listening on {at}")
            if http is not None:
                say(f"OpenAI's dialect of HTTP at {http.url(server.http_port)}/v1")
            if metrics is not None:
                say(f"metrics for Prometheus at {metrics.url(server.metrics_port)}/metrics")
            await signalled
    finally:
        catalogue.close()
        if recorder is not None:
            recorder.close()


def node_factory(setup: NodeSetup) -> NodeFactory:
    """Nodes are nodes: processes of this machine, with the devices of the moment."""

    def start(on_reports: Callable[[Reports], None], *, devices: PresentDevices) -> RunningNode:
        present = replace(
            setup,
            devices=tuple(devices.setups.values()),
            instances=tuple(devices.setups),
            n_numbered=devices.n_numbered,
            n_sharing=len(setup.devices),
        )
        return NodeProcess(present, on_reports)

    return start


@dataclass(frozen=True, slots=True)
class DeviceCapacity:
    """`tokenmux.server.front.fitting.Capacity` beside this host memory."""

    host: HostFacts

    def check_model(self, device: DeviceFacts, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        check_model(device, self.host, model, pinned)

    def check_request(
        self, device: DeviceFacts, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]
    ) -> None:
        check_request(device, model, n_tokens, pinned)


def recorder_of(
    config: PoolConfig, now_s: float, prefixes: PromptPrefixes | None = None
) -> TrafficRecorder | None:
    """The recorder, or None if nothing is recorded. Raises ConfigError if the file cannot be written."""
    asked = config.record_traffic
    if not asked.window and asked.path is None:
        return None
    file = None if asked.path is None else TraceFile(asked.path, asked.max_size, asked.keep)
    if prefixes is None:
        return TrafficRecorder(asked.window, now_s, file)
    return TrafficRecorder(asked.window, now_s, file, lambda submit: prefixes.request_of(submit).prefix)


def limits_of(config: PoolConfig, setup: NodeSetup) -> Limits:
    return Limits(
        max_requests=config.queue.max_requests,
        max_choices=config.queue.max_choices,
        buffer_tokens=config.slow_reader.buffer_tokens,
        unread_s=config.slow_reader.end_after_s,
        restarts=RestartLimits(config.node.max_restarts, config.node.restart_window_s),
        patience=Patience(silent_s=config.node.silent_s, starting_s=starting_s(setup)),
        outage_s=config.node.outage_s,
        still_s=config.node.still_s,
    )


def starting_s(setup: NodeSetup) -> float:
    """How long a node may take until it serves: it loads libraries and touches its memory page by page."""
    arenas = sum(device.facts.arena_bytes for device in setup.devices if device.kind == "cpu")
    return STARTING_S + (arenas + setup.host_kv_bytes) / TOUCHED_BYTES_PER_S


def text_limits_of(config: PoolConfig) -> TextLimits:
    return TextLimits(config.text.seconds, config.text.memory, config.text.processes)


def registration_limits_of(config: PoolConfig) -> RegistrationLimits:
    return RegistrationLimits(config.registration.memory, config.registration.silent_s, config.text.seconds)


def weights_of(config: PoolConfig) -> Weights:
    return Weights(
        {name: tenant.weight for name, tenant in config.tenants.items()},
        {name: model.weight for name, model in config.models.items()},
    )


def read_keys(config: PoolConfig) -> ApiKeys:
    """Read the files of the keys. Raises ConfigError if one is missing, empty, cannot be sent, or is the same
    as another."""
    keys: list[Key] = []
    for key in config.keys:
        secret = _read("keys.file", key.file, MAX_KEY_BYTES).decode(errors="replace").strip()
        if not secret:
            raise ConfigError(f"{key.file}: the file of the key {key.name!r} is empty")
        if not (secret.isascii() and secret.isprintable()):
            raise ConfigError(
                f"{key.file}: no client can send the key {key.name!r}: write one line of printable ASCII"
            )
        made = Key.of(key.name, key.scope, secret)
        if any(made.digest == other.digest for other in keys):
            raise ConfigError(f"{key.file}: the key {key.name!r} is the same as another one")
        keys.append(made)
    return ApiKeys(keys)


def read_transport(config: PoolConfig) -> Transport:
    """Read certificate and private key, if any. Raises ConfigError, also if they do not belong together."""
    if config.tls is None:
        return Transport(address=config.listen, max_message_bytes=config.max_message)
    certificate = _read("tls.certificate", config.tls.certificate, MAX_PEM_BYTES)
    private_key = _read("tls.private_key", config.tls.private_key, MAX_PEM_BYTES)
    check_pair(config.tls.certificate, config.tls.private_key)
    return Transport(
        address=config.listen,
        certificate=certificate,
        private_key=private_key,
        max_message_bytes=config.max_message,
    )


def http_transport(config: PoolConfig, address: str | None) -> HttpTransport | None:
    """How what is served over HTTP at this address is reached; None without one. The files were checked by
    `read_transport`."""
    if address is None:
        return None
    return HttpTransport(
        address,
        tls=None if config.tls is None else tls_context(config.tls.certificate, config.tls.private_key),
        hosts=config.http_hosts,
        max_body_bytes=config.max_message,
        unread_s=config.slow_reader.end_after_s,
    )


def warn_of_open_files(config: PoolConfig) -> None:
    """Log which secrets other users of this machine may read or replace."""
    secrets = [("keys.file", key.file) for key in config.keys]
    if config.tls is not None:
        secrets.append(("tls.private_key", config.tls.private_key))
    for what, path in secrets:
        if path.stat().st_mode & 0o007:
            logger.warning("%s: every user of this machine has access to %s: chmod 600 it", what, path)


def _read(what: str, path: Path, limit: int) -> bytes:
    """What is in a file of at most `limit` bytes; a device may have no end."""
    try:
        with path.open("rb") as file:
            found = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read: {error.strerror}") from error
    if len(found) > limit:
        raise ConfigError(f"{what}: {path} has more than {limit} bytes: name another file")
    return found
