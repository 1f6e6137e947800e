from tokenmux.v1 import models_pb2 as _models_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeviceKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_KIND_UNSPECIFIED: _ClassVar[DeviceKind]
    DEVICE_KIND_CPU: _ClassVar[DeviceKind]
    DEVICE_KIND_CUDA: _ClassVar[DeviceKind]

class PagedKv(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAGED_KV_UNSPECIFIED: _ClassVar[PagedKv]
    PAGED_KV_EXACT: _ClassVar[PagedKv]
    PAGED_KV_INT8: _ClassVar[PagedKv]

class DeviceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_STATE_UNSPECIFIED: _ClassVar[DeviceState]
    DEVICE_STATE_STARTING: _ClassVar[DeviceState]
    DEVICE_STATE_SERVING: _ClassVar[DeviceState]
    DEVICE_STATE_DRAINING: _ClassVar[DeviceState]
    DEVICE_STATE_DRAINED: _ClassVar[DeviceState]
    DEVICE_STATE_OUT: _ClassVar[DeviceState]
DEVICE_KIND_UNSPECIFIED: DeviceKind
DEVICE_KIND_CPU: DeviceKind
DEVICE_KIND_CUDA: DeviceKind
PAGED_KV_UNSPECIFIED: PagedKv
PAGED_KV_EXACT: PagedKv
PAGED_KV_INT8: PagedKv
DEVICE_STATE_UNSPECIFIED: DeviceState
DEVICE_STATE_STARTING: DeviceState
DEVICE_STATE_SERVING: DeviceState
DEVICE_STATE_DRAINING: DeviceState
DEVICE_STATE_DRAINED: DeviceState
DEVICE_STATE_OUT: DeviceState

class GetStatusRequest(_message.Message):
    __slots__ = ("view", "page_size", "page_token", "filter")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    view: _models_pb2.View
    page_size: int
    page_token: str
    filter: str
    def __init__(self, view: _Optional[_Union[_models_pb2.View, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("status", "next_page_token")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    status: PoolStatus
    next_page_token: str
    def __init__(self, status: _Optional[_Union[PoolStatus, _Mapping]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ("min_interval_s", "view")
    MIN_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    min_interval_s: float
    view: _models_pb2.View
    def __init__(self, min_interval_s: _Optional[float] = ..., view: _Optional[_Union[_models_pb2.View, str]] = ...) -> None: ...

class WatchStatusResponse(_message.Message):
    __slots__ = ("status", "version", "whole", "removed_models", "removed_tenants", "removed_instances")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    REMOVED_MODELS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TENANTS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    status: PoolStatus
    version: int
    whole: bool
    removed_models: _containers.RepeatedScalarFieldContainer[str]
    removed_tenants: _containers.RepeatedScalarFieldContainer[str]
    removed_instances: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, status: _Optional[_Union[PoolStatus, _Mapping]] = ..., version: _Optional[int] = ..., whole: _Optional[bool] = ..., removed_models: _Optional[_Iterable[str]] = ..., removed_tenants: _Optional[_Iterable[str]] = ..., removed_instances: _Optional[_Iterable[int]] = ...) -> None: ...

class PoolStatus(_message.Message):
    __slots__ = ("version", "uptime_s", "n_requests", "max_requests", "n_restarts", "instances", "models", "tenants", "duration_bounds_s", "devices_saved", "devices_saved_dedicated", "at_s", "host_cache_bytes", "host_cache_used_bytes", "host_kv_bytes", "host_kv_used_bytes", "work_s", "model_work_s", "n_models_used")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    N_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    N_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    DURATION_BOUNDS_S_FIELD_NUMBER: _ClassVar[int]
    DEVICES_SAVED_FIELD_NUMBER: _ClassVar[int]
    DEVICES_SAVED_DEDICATED_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    HOST_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_CACHE_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_KV_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_WORK_S_FIELD_NUMBER: _ClassVar[int]
    N_MODELS_USED_FIELD_NUMBER: _ClassVar[int]
    version: str
    uptime_s: float
    n_requests: int
    max_requests: int
    n_restarts: int
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    models: _containers.RepeatedCompositeFieldContainer[_models_pb2.Model]
    tenants: _containers.RepeatedCompositeFieldContainer[Tenant]
    duration_bounds_s: _containers.RepeatedScalarFieldContainer[float]
    devices_saved: float
    devices_saved_dedicated: float
    at_s: float
    host_cache_bytes: int
    host_cache_used_bytes: int
    host_kv_bytes: int
    host_kv_used_bytes: int
    work_s: float
    model_work_s: float
    n_models_used: int
    def __init__(self, version: _Optional[str] = ..., uptime_s: _Optional[float] = ..., n_requests: _Optional[int] = ..., max_requests: _Optional[int] = ..., n_restarts: _Optional[int] = ..., instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[_models_pb2.Model, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ..., duration_bounds_s: _Optional[_Iterable[float]] = ..., devices_saved: _Optional[float] = ..., devices_saved_dedicated: _Optional[float] = ..., at_s: _Optional[float] = ..., host_cache_bytes: _Optional[int] = ..., host_cache_used_bytes: _Optional[int] = ..., host_kv_bytes: _Optional[int] = ..., host_kv_used_bytes: _Optional[int] = ..., work_s: _Optional[float] = ..., model_work_s: _Optional[float] = ..., n_models_used: _Optional[int] = ...) -> None: ...

class Tenant(_message.Message):
    __slots__ = ("name", "service")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    name: str
    service: _models_pb2.ServiceTotals
    def __init__(self, name: _Optional[str] = ..., service: _Optional[_Union[_models_pb2.ServiceTotals, _Mapping]] = ...) -> None: ...

class GetTraceRequest(_message.Message):
    __slots__ = ("last_s",)
    LAST_S_FIELD_NUMBER: _ClassVar[int]
    last_s: float
    def __init__(self, last_s: _Optional[float] = ...) -> None: ...

class GetTraceResponse(_message.Message):
    __slots__ = ("chrome_trace", "n_spans", "seconds")
    CHROME_TRACE_FIELD_NUMBER: _ClassVar[int]
    N_SPANS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    chrome_trace: str
    n_spans: int
    seconds: float
    def __init__(self, chrome_trace: _Optional[str] = ..., n_spans: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class ResizeDeviceRequest(_message.Message):
    __slots__ = ("arena_bytes", "instance")
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    arena_bytes: int
    instance: int
    def __init__(self, arena_bytes: _Optional[int] = ..., instance: _Optional[int] = ...) -> None: ...

class ResizeDeviceResponse(_message.Message):
    __slots__ = ("arena_bytes",)
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    arena_bytes: int
    def __init__(self, arena_bytes: _Optional[int] = ...) -> None: ...

class AddDeviceRequest(_message.Message):
    __slots__ = ("kind", "arena_bytes", "gpu", "paged_kv")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    PAGED_KV_FIELD_NUMBER: _ClassVar[int]
    kind: DeviceKind
    arena_bytes: int
    gpu: str
    paged_kv: PagedKv
    def __init__(self, kind: _Optional[_Union[DeviceKind, str]] = ..., arena_bytes: _Optional[int] = ..., gpu: _Optional[str] = ..., paged_kv: _Optional[_Union[PagedKv, str]] = ...) -> None: ...

class AddDeviceResponse(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: int
    def __init__(self, instance: _Optional[int] = ...) -> None: ...

class DrainDeviceRequest(_message.Message):
    __slots__ = ("instance", "undo")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    instance: int
    undo: bool
    def __init__(self, instance: _Optional[int] = ..., undo: _Optional[bool] = ...) -> None: ...

class DrainDeviceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveDeviceRequest(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: int
    def __init__(self, instance: _Optional[int] = ...) -> None: ...

class RemoveDeviceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Instance(_message.Message):
    __slots__ = ("device", "arena_bytes", "weight_bytes", "kv_bytes", "compute_busy_s", "copy_in_busy_s", "copy_out_busy_s", "fetch_busy_s", "n_steps", "n_discards", "running_model", "work_s", "model_work_s", "id", "state", "fault", "n_deaths", "loading_model", "resident_models", "pinned_models", "n_requests", "paged_in_bytes", "paged_out_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_BUSY_S_FIELD_NUMBER: _ClassVar[int]
    COPY_IN_BUSY_S_FIELD_NUMBER: _ClassVar[int]
    COPY_OUT_BUSY_S_FIELD_NUMBER: _ClassVar[int]
    FETCH_BUSY_S_FIELD_NUMBER: _ClassVar[int]
    N_STEPS_FIELD_NUMBER: _ClassVar[int]
    N_DISCARDS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_MODEL_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_WORK_S_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    N_DEATHS_FIELD_NUMBER: _ClassVar[int]
    LOADING_MODEL_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_MODELS_FIELD_NUMBER: _ClassVar[int]
    PINNED_MODELS_FIELD_NUMBER: _ClassVar[int]
    N_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PAGED_IN_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGED_OUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: str
    arena_bytes: int
    weight_bytes: int
    kv_bytes: int
    compute_busy_s: float
    copy_in_busy_s: float
    copy_out_busy_s: float
    fetch_busy_s: float
    n_steps: int
    n_discards: int
    running_model: str
    work_s: float
    model_work_s: float
    id: int
    state: DeviceState
    fault: str
    n_deaths: int
    loading_model: str
    resident_models: _containers.RepeatedScalarFieldContainer[str]
    pinned_models: _containers.RepeatedScalarFieldContainer[str]
    n_requests: int
    paged_in_bytes: int
    paged_out_bytes: int
    def __init__(self, device: _Optional[str] = ..., arena_bytes: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., compute_busy_s: _Optional[float] = ..., copy_in_busy_s: _Optional[float] = ..., copy_out_busy_s: _Optional[float] = ..., fetch_busy_s: _Optional[float] = ..., n_steps: _Optional[int] = ..., n_discards: _Optional[int] = ..., running_model: _Optional[str] = ..., work_s: _Optional[float] = ..., model_work_s: _Optional[float] = ..., id: _Optional[int] = ..., state: _Optional[_Union[DeviceState, str]] = ..., fault: _Optional[str] = ..., n_deaths: _Optional[int] = ..., loading_model: _Optional[str] = ..., resident_models: _Optional[_Iterable[str]] = ..., pinned_models: _Optional[_Iterable[str]] = ..., n_requests: _Optional[int] = ..., paged_in_bytes: _Optional[int] = ..., paged_out_bytes: _Optional[int] = ...) -> None: ...
