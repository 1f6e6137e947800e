from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetCatalogueRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCatalogueResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSizes]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSizes, _Mapping]]] = ...) -> None: ...

class ModelSizes(_message.Message):
    __slots__ = ("name", "weight_bytes", "n_parameters", "max_context", "vocab_size", "n_layers", "n_kv_heads", "head_dim", "dtype_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    N_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    N_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight_bytes: int
    n_parameters: int
    max_context: int
    vocab_size: int
    n_layers: int
    n_kv_heads: int
    head_dim: int
    dtype_bytes: int
    def __init__(self, name: _Optional[str] = ..., weight_bytes: _Optional[int] = ..., n_parameters: _Optional[int] = ..., max_context: _Optional[int] = ..., vocab_size: _Optional[int] = ..., n_layers: _Optional[int] = ..., n_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., dtype_bytes: _Optional[int] = ...) -> None: ...

class GetRecordedTrafficRequest(_message.Message):
    __slots__ = ("last_s",)
    LAST_S_FIELD_NUMBER: _ClassVar[int]
    last_s: float
    def __init__(self, last_s: _Optional[float] = ...) -> None: ...

class GetRecordedTrafficResponse(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RecordedRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RecordedRequest, _Mapping]]] = ...) -> None: ...

class RecordedRequest(_message.Message):
    __slots__ = ("arrival_s", "model", "input_tokens", "output_tokens", "tenant", "ttft_s", "tpot_s", "weight", "hash_ids", "hash_tokens")
    ARRIVAL_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    HASH_IDS_FIELD_NUMBER: _ClassVar[int]
    HASH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    arrival_s: float
    model: str
    input_tokens: int
    output_tokens: int
    tenant: str
    ttft_s: float
    tpot_s: float
    weight: float
    hash_ids: _containers.RepeatedScalarFieldContainer[int]
    hash_tokens: int
    def __init__(self, arrival_s: _Optional[float] = ..., model: _Optional[str] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., tenant: _Optional[str] = ..., ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ..., weight: _Optional[float] = ..., hash_ids: _Optional[_Iterable[int]] = ..., hash_tokens: _Optional[int] = ...) -> None: ...
