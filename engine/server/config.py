"""`pool.yaml`: the configuration of a server, validated, with errors that name the line and the allowed
values.

Flags of the command line arrive as `Override`s and go through the same validation. Relative paths start at
the folder of the file. This module only describes; `tokenmux.server.serve` builds from it.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, FiniteFloat, ValidationError

from tokenmux.core.addresses import DEFAULT_ADDRESS, is_loopback
from tokenmux.core.errors import ConfigError
from tokenmux.core.file_faults import reading_fault
from tokenmux.server.device_config import (
    MAX_DEVICES,
    DeviceConfig,
    Entries,
    HostConfig,
    SingleDeviceConfig,
    contradictions_of_devices,
    device_entries,
)
from tokenmux.server.front.api_keys import Scope
from tokenmux.server.front.request_rules import MAX_SECONDS
from tokenmux.server.yaml_lines import Document, YamlPath, parse
from tokenmux.server.yaml_values import (
    MAX_COUNT,
    Address,
    Count,
    CountOrNone,
    HostName,
    Location,
    ModelName,
    PolicyName,
    Seconds,
    Section,
    Size,
    TenantName,
    Weight,
    in_short,
)

MAX_MESSAGE_BYTES = MAX_COUNT // 4
"""A server still reads messages of four times `max_message`, to refuse them with a reason."""


def _source(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


class ModelConfig(Section):
    """A model to serve. In the file, a bare path stands for `source`."""

    source: Location
    pinned: bool = False
    weight: Weight = 1.0
    """Multiplies the weight of its requests: higher is sooner, by less than a TTFT."""


class QueueConfig(Section):
    max_requests: Count = 256
    max_tokens: Count = 256
    """Length of an answer if the request does not say."""
    max_choices: Count = 16
    """Most choices that one call may ask for (`n`). Each takes a place of `max_requests`."""


class PrefixCacheConfig(Section):
    """KV cache of prompts' beginnings that later requests of the same model are given."""

    enabled: bool = False
    across_tenants: bool = False
    """Tenants share what they begin alike. One then learns from its time to the first token whether another
    one sent the same beginning."""


class TenantConfig(Section):
    """A tenant: the name of a key or, without keys, the name in the request."""

    weight: Weight = 1.0
    """Under overload, tenants get time and places in the queue in proportion."""


class ServiceLevelConfig(Section):
    """When tokens are due if the request does not say."""

    ttft_s: Seconds = 10.0
    tpot_s: Seconds = 0.1


class SlowReaderConfig(Section):
    buffer_tokens: Count = 512
    """Number of tokens that a client may leave unread before its request is paused."""
    end_after_s: Seconds = 60.0
    """How long a request may stay paused before it is ended."""


class NodeConfig(Section):
    """A node, or the process of a device, that breaks is replaced, without limit."""

    max_restarts: CountOrNone = 3
    """This many in a row that break within `restart_window_s` of their start are replaced at once; after that
    the wait is 1, 2, 4, ... 60 s."""
    restart_window_s: Seconds = 60.0
    silent_s: Annotated[Seconds, Field(ge=2)] = 10.0
    """A node, or the process of a device, that sends nothing for this long hangs, and is killed."""
    still_s: Annotated[Seconds, Field(ge=2)] = 30.0
    """Health is NOT_SERVING if requests wait and nothing has moved for this long: no token, no step, no
    copy."""
    outage_s: Annotated[FiniteFloat, Field(ge=0)] = 30.0
    """How long requests wait while there is no node, or no device serves. Then they end, and new ones are
    refused until there is one."""


class TextConfig(Section):
    """Child processes that turn prompts into token ids, by the models' own tokenizers and chat templates."""

    seconds: Annotated[FiniteFloat, Field(gt=0)] = 5.0
    """Processor time for one prompt. Beyond it the process is killed and the request refused."""
    memory: Size = 2 << 30
    """Memory of one process."""
    processes: Annotated[int, Field(ge=1, le=64)] = 3
    """With just one, a model's bad template can hold up the prompts of the others."""


class RegistrationConfig(Section):
    """Child processes that probe, convert and check models."""

    memory: Size = 6 << 30
    """Memory of one process, besides three times the weights that it converts."""
    silent_s: Annotated[FiniteFloat, Field(gt=0)] = 300.0
    """Processor time without any progress. Beyond it the process is killed and the model refused."""


class RecordTrafficConfig(Section):
    """Lengths and times of requests, never text, for `tokenmux plan --from-server`."""

    window: CountOrNone = 10_000
    """Number of requests kept in memory, the newest ones (10,000 take 2 MB); 0: none."""
    path: Location | None = None
    """A file to which they are also appended, in the format of traces."""
    max_size: Size = 64 << 20
    """A longer file is put aside, and a new one begun."""
    keep: Count = 4
    """Number of files put aside; older ones are deleted."""


class TlsConfig(Section):
    """Certificate and key for TLS, as PEM files."""

    certificate: Location
    private_key: Location


class KeyConfig(Section):
    """An API key. The secret is in a separate file, so that this one can be shown to others."""

    name: TenantName
    """Its requests belong to the tenant of this name."""
    scope: Scope
    file: Location


class PoolConfig(Section):
    """The whole file."""

    listen: Address = DEFAULT_ADDRESS
    http: Address | None = None
    """Where OpenAI's dialect of HTTP is served, with the same keys and certificate. Default: nowhere."""
    metrics: Address | None = None
    """Where the figures for Prometheus are served, with the same keys and certificate. Default: at
    `/metrics` of `http`."""
    http_hosts: tuple[HostName, ...] = ()
    """Names by which clients call `http` and `metrics`, besides their addresses and localhost. On loopback,
    requests that name another host are refused."""
    catalogue: Location = Path("~/.cache/tokenmux/catalogue")
    models: dict[ModelName, Annotated[ModelConfig, BeforeValidator(_source)]] = Field(default_factory=dict)
    device: SingleDeviceConfig = SingleDeviceConfig()
    """The devices, if all are alike. Give this or `devices`."""
    devices: Annotated[tuple[DeviceConfig, ...], Field(max_length=MAX_DEVICES)] | None = None
    """The devices, if they differ."""
    host: HostConfig = HostConfig()
    policy: PolicyName = "slack"
    """How models share a device. All but the default are baselines for comparison."""
    queue: QueueConfig = QueueConfig()
    prefix_cache: PrefixCacheConfig = PrefixCacheConfig()
    tenants: dict[TenantName, TenantConfig] = Field(default_factory=dict)
    service_level: ServiceLevelConfig = ServiceLevelConfig()
    slow_reader: SlowReaderConfig = SlowReaderConfig()
    node: NodeConfig = NodeConfig()
    text: TextConfig = TextConfig()
    registration: RegistrationConfig = RegistrationConfig()
    record_traffic: RecordTrafficConfig = RecordTrafficConfig()
    tls: TlsConfig | None = None
    keys: tuple[KeyConfig, ...] = ()
    max_message: Annotated[Size, Field(le=MAX_MESSAGE_BYTES)] = 4 << 20
    drain_s: Annotated[FiniteFloat, Field(ge=0, le=MAX_SECONDS)] = 30.0
    """How long live requests may take to complete after SIGTERM."""

    @property
    def all_devices(self) -> Entries:
        """What describes devices, each with its place in the file."""
        return device_entries(self.device, self.devices)

    @property
    def host_cache(self) -> Size | None:
        """`host.cache`, or where it stands for a single device."""
        return self.host.cache or self.device.host_cache

    @property
    def host_kv(self) -> Size | None:
        """`host.kv`, or where it stands for a single device."""
        return self.host.kv or self.device.host_kv


@dataclass(frozen=True, slots=True)
class Override:
    """A value given by a flag, which replaces the file's."""

    place: YamlPath
    value: object
    flag: str


def load_config(path: Path | None, overrides: Sequence[Override] = ()) -> PoolConfig:
    """Read and check `pool.yaml`; without a file, flags and defaults only. Raises ConfigError, one line
    for each mistake."""
    if path is None:
        return check_config(Document("command line", {}, {}), Path.cwd(), overrides)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {reading_fault(error)}") from error
    return check_config(parse(text, str(path)), path.parent, overrides)


def check_config(document: Document, folder: Path, overrides: Sequence[Override] = ()) -> PoolConfig:
    """Validate parsed data; relative paths are taken from `folder`. Raises ConfigError."""
    if not isinstance(document.data, dict):
        raise ConfigError(
            f"{document.name}:1: there must be keys and values, such as `listen: {DEFAULT_ADDRESS}`"
        )
    data = document.data
    for override in overrides:
        data = _with(data, override.place, override.value)
    try:
        config = PoolConfig.model_validate(data, context=folder)
    except ValidationError as error:
        mistakes = [(tuple(item["loc"]), _say(item)) for item in error.errors(include_url=False)]
    else:
        mistakes = list(_contradictions(config))
    if mistakes:
        raise ConfigError(
            "\n".join(f"{_where(document, place, overrides)}: {text}" for place, text in mistakes)
        )
    return config


def _contradictions(config: PoolConfig) -> list[tuple[YamlPath, str]]:
    """Values that are wrong only in combination."""
    found: list[tuple[YamlPath, str]] = []
    missing = " and ".join(
        name for name, given in (("`tls`", config.tls), ("`keys`", config.keys)) if not given
    )
    addresses = {"listen": config.listen, "http": config.http, "metrics": config.metrics}
    for key, address in addresses.items():
        if missing and address is not None and not is_loopback(address):
            reason = (
                f"{key}: {address} can be reached from other machines, which needs {missing}: "
                "add them, or listen on 127.0.0.1"
            )
            found.append(((key,), reason))
    if config.http == config.listen and not config.listen.endswith(":0"):
        found.append((("http",), f"http: {config.http} is where gRPC listens: choose another port"))
    if config.metrics in (config.listen, config.http) and not (config.metrics or ":0").endswith(":0"):
        remedy = "choose another port, or leave it out: `http` has /metrics too"
        found.append((("metrics",), f"metrics: {config.metrics} is taken by `listen` or `http`: {remedy}"))
    found.extend(contradictions_of_devices(config.device, config.devices))
    path = config.record_traffic.path
    if path is not None and path.suffix != ".jsonl":
        reason = f"record_traffic.path: {path.name} must end in .jsonl, so that it can be read as a trace"
        found.append((("record_traffic", "path"), reason))
    names = [key.name for key in config.keys]
    found.extend(
        (("keys", index, "name"), f"keys.{index}.name: there are two keys named {name!r}")
        for index, name in enumerate(names)
        if name in names[:index]
    )
    return found


def _with(data: dict[Any, Any], place: YamlPath, value: object) -> dict[Any, Any]:
    """A copy of nested mappings with one value replaced."""
    head, *rest = place
    inner = data.get(head)
    return {
        **data,
        head: _with(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value,
    }


def _where(document: Document, place: YamlPath, overrides: Sequence[Override]) -> str:
    for override in overrides:
        if place[: len(override.place)] == override.place:
            return f"command line: {override.flag}"
    return f"{document.name}:{document.line_of(place)}" if document.lines else document.name


def _say(item: Any) -> str:
    """One of pydantic's findings in our words: where, what, and what is allowed."""
    place, kind = item["loc"], item["type"]
    dotted = ".".join(str(part) for part in place if part != "[key]")
    match kind:
        case "extra_forbidden":
            allowed = sorted(_section_at(place[:-1]).model_fields)
            close = difflib.get_close_matches(str(place[-1]), allowed, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            return f"{dotted}: there is no such key; {hint}allowed: {', '.join(allowed)}"
        case "missing":
            return f"{dotted}: is missing"
        case "value_error":
            return f"{dotted}: {item['ctx']['error']}"
        case _:
            message = item["msg"].removeprefix("Input ")
            return f"{dotted}: {message}, and is {in_short(item['input'])}"


def _section_at(place: YamlPath) -> type[Section]:
    """The part of the schema that describes the mapping at this place. Names of models and indices are
    skipped."""
    section: type[Section] = PoolConfig
    for part in place:
        field = section.model_fields.get(str(part))
        section = section if field is None else _section_in(field.annotation) or section
    return section


def _section_in(annotation: Any) -> type[Section] | None:
    """The section in an annotation, however it is wrapped."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
