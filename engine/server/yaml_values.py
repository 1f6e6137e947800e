"""The kinds of values in `pool.yaml`, each with its bounds and what is said about a wrong one."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationInfo,
)

from tokenmux.core.addresses import address_fault
from tokenmux.core.errors import ConfigError
from tokenmux.core.model_names import model_name_fault
from tokenmux.core.sizes import parse_size
from tokenmux.scheduler.policy.registry import make_policy
from tokenmux.server.front.names import MAX_TENANT_CHARS, tenant_fault
from tokenmux.server.front.request_rules import MAX_SECONDS, MAX_WEIGHT, MIN_SECONDS, MIN_WEIGHT

_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")


def in_short(value: object) -> str:
    """A value as it is shown in an error."""
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _address(value: str) -> str:
    fault = address_fault(value)
    if fault is not None:
        raise ValueError(fault)
    return value


def _host_name(value: str) -> str:
    if not _HOST_NAME.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not the name of a host: write it without a port")
    return value


def _name(value: str) -> str:
    fault = model_name_fault(value)
    if fault is not None:
        raise ValueError(fault)
    return value


def _tenant(value: str) -> str:
    fault = tenant_fault(value)
    if fault is not None:
        raise ValueError(fault)
    return value


def _policy(value: str) -> str:
    try:
        make_policy(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return value


def _location(value: Path, info: ValidationInfo) -> Path:
    """Make a path absolute, from the folder that is the context of the validation."""
    folder: Any = info.context
    try:
        location = value.expanduser()
        str(location).encode()  # messages to other processes and the catalogue's files hold UTF-8
    except (RuntimeError, UnicodeError) as error:
        raise ValueError(f"{str(value)!r} cannot be resolved here: write it in full ({error})") from error
    if "\0" in str(value):
        raise ValueError(f"{str(value)!r} is not a path: it contains a NUL character")
    return Path(folder).absolute() / location


MAX_COUNT = 2**31 - 1
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, lt=1 << 62)]
Seconds = Annotated[FiniteFloat, Field(ge=MIN_SECONDS, le=MAX_SECONDS)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrNone = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Weight = Annotated[FiniteFloat, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)]
TenantName = Annotated[str, Field(min_length=1, max_length=MAX_TENANT_CHARS), AfterValidator(_tenant)]
Address = Annotated[str, AfterValidator(_address)]
HostName = Annotated[str, AfterValidator(_host_name)]
Location = Annotated[Path, AfterValidator(_location)]
ModelName = Annotated[str, AfterValidator(_name)]
PolicyName = Annotated[str, AfterValidator(_policy)]


class Section(BaseModel):
    """What all sections of the file have in common: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
