from tokenmux.v1 import operations_pb2 as _operations_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Residency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESIDENCY_UNSPECIFIED: _ClassVar[Residency]
    RESIDENCY_DISK: _ClassVar[Residency]
    RESIDENCY_FETCHING: _ClassVar[Residency]
    RESIDENCY_HOST: _ClassVar[Residency]
    RESIDENCY_LOADING: _ClassVar[Residency]
    RESIDENCY_RESIDENT: _ClassVar[Residency]

class View(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VIEW_UNSPECIFIED: _ClassVar[View]
    VIEW_BASIC: _ClassVar[View]
    VIEW_FULL: _ClassVar[View]
RESIDENCY_UNSPECIFIED: Residency
RESIDENCY_DISK: Residency
RESIDENCY_FETCHING: Residency
RESIDENCY_HOST: Residency
RESIDENCY_LOADING: Residency
RESIDENCY_RESIDENT: Residency
VIEW_UNSPECIFIED: View
VIEW_BASIC: View
VIEW_FULL: View

class Model(_message.Message):
    __slots__ = ("name", "residency", "pinned", "refusal", "weight_bytes", "kv_bytes_per_token", "n_parameters", "max_context", "vocab_size", "n_queued", "n_running", "n_paged_out", "n_swaps", "swap_bytes", "swap_s", "swap_exposed_s", "n_prompt_tokens", "n_tokens", "n_tokens_on_time", "compute_s", "service", "n_swaps_first", "n_swaps_again", "n_swaps_operator", "n_swaps_ahead", "instances", "n_tokens_overdue")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    N_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    N_QUEUED_FIELD_NUMBER: _ClassVar[int]
    N_RUNNING_FIELD_NUMBER: _ClassVar[int]
    N_PAGED_OUT_FIELD_NUMBER: _ClassVar[int]
    N_SWAPS_FIELD_NUMBER: _ClassVar[int]
    SWAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    SWAP_S_FIELD_NUMBER: _ClassVar[int]
    SWAP_EXPOSED_S_FIELD_NUMBER: _ClassVar[int]
    N_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_ON_TIME_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    N_SWAPS_FIRST_FIELD_NUMBER: _ClassVar[int]
    N_SWAPS_AGAIN_FIELD_NUMBER: _ClassVar[int]
    N_SWAPS_OPERATOR_FIELD_NUMBER: _ClassVar[int]
    N_SWAPS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_OVERDUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    residency: Residency
    pinned: bool
    refusal: str
    weight_bytes: int
    kv_bytes_per_token: int
    n_parameters: int
    max_context: int
    vocab_size: int
    n_queued: int
    n_running: int
    n_paged_out: int
    n_swaps: int
    swap_bytes: int
    swap_s: float
    swap_exposed_s: float
    n_prompt_tokens: int
    n_tokens: int
    n_tokens_on_time: int
    compute_s: float
    service: ServiceTotals
    n_swaps_first: int
    n_swaps_again: int
    n_swaps_operator: int
    n_swaps_ahead: int
    instances: _containers.RepeatedScalarFieldContainer[int]
    n_tokens_overdue: int
    def __init__(self, name: _Optional[str] = ..., residency: _Optional[_Union[Residency, str]] = ..., pinned: _Optional[bool] = ..., refusal: _Optional[str] = ..., weight_bytes: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., n_parameters: _Optional[int] = ..., max_context: _Optional[int] = ..., vocab_size: _Optional[int] = ..., n_queued: _Optional[int] = ..., n_running: _Optional[int] = ..., n_paged_out: _Optional[int] = ..., n_swaps: _Optional[int] = ..., swap_bytes: _Optional[int] = ..., swap_s: _Optional[float] = ..., swap_exposed_s: _Optional[float] = ..., n_prompt_tokens: _Optional[int] = ..., n_tokens: _Optional[int] = ..., n_tokens_on_time: _Optional[int] = ..., compute_s: _Optional[float] = ..., service: _Optional[_Union[ServiceTotals, _Mapping]] = ..., n_swaps_first: _Optional[int] = ..., n_swaps_again: _Optional[int] = ..., n_swaps_operator: _Optional[int] = ..., n_swaps_ahead: _Optional[int] = ..., instances: _Optional[_Iterable[int]] = ..., n_tokens_overdue: _Optional[int] = ...) -> None: ...

class ServiceTotals(_message.Message):
    __slots__ = ("n_requests", "n_requests_on_time", "n_requests_failed", "n_prompt_tokens", "n_tokens", "n_tokens_on_time", "artifact_attainment", "gpu_s", "ttft", "tpot", "gaps", "n_prefix_hits", "n_cached_prompt_tokens")
    N_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    N_REQUESTS_ON_TIME_FIELD_NUMBER: _ClassVar[int]
    N_REQUESTS_FAILED_FIELD_NUMBER: _ClassVar[int]
    N_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_ON_TIME_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    GPU_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    TPOT_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    N_PREFIX_HITS_FIELD_NUMBER: _ClassVar[int]
    N_CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    n_requests: int
    n_requests_on_time: int
    n_requests_failed: int
    n_prompt_tokens: int
    n_tokens: int
    n_tokens_on_time: int
    artifact_attainment: float
    gpu_s: float
    ttft: Durations
    tpot: Durations
    gaps: Durations
    n_prefix_hits: int
    n_cached_prompt_tokens: int
    def __init__(self, n_requests: _Optional[int] = ..., n_requests_on_time: _Optional[int] = ..., n_requests_failed: _Optional[int] = ..., n_prompt_tokens: _Optional[int] = ..., n_tokens: _Optional[int] = ..., n_tokens_on_time: _Optional[int] = ..., artifact_attainment: _Optional[float] = ..., gpu_s: _Optional[float] = ..., ttft: _Optional[_Union[Durations, _Mapping]] = ..., tpot: _Optional[_Union[Durations, _Mapping]] = ..., gaps: _Optional[_Union[Durations, _Mapping]] = ..., n_prefix_hits: _Optional[int] = ..., n_cached_prompt_tokens: _Optional[int] = ...) -> None: ...

class Durations(_message.Message):
    __slots__ = ("counts", "total_s")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    total_s: float
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., total_s: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "filter", "view")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    filter: str
    view: View
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ..., view: _Optional[_Union[View, str]] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class RegisterModelRequest(_message.Message):
    __slots__ = ("name", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class RegisterModelResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operations_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operations_pb2.Operation, _Mapping]] = ...) -> None: ...

class UnregisterModelRequest(_message.Message):
    __slots__ = ("name", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class UnregisterModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name", "wait")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    wait: bool
    def __init__(self, name: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class PinModelRequest(_message.Message):
    __slots__ = ("name", "pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    pinned: bool
    def __init__(self, name: _Optional[str] = ..., pinned: _Optional[bool] = ...) -> None: ...

class PinModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...
