"""The Python client of tokenmux, blocking and asyncio. Needs only grpcio and the generated `tokenmux.v1`.

>>> from tokenmux import Client
>>> with Client() as client:
...     print(client.generate("smol", "The capital of France is", max_tokens=8).text)
"""

from tokenmux.client.aio import AsyncClient, AsyncStream
from tokenmux.client.errors import CallFailed, ErrorDetails, WrongArgument
from tokenmux.client.operator_values import (
    DeviceState,
    Durations,
    InstanceStatus,
    Model,
    ModelSizes,
    Operation,
    OperationState,
    PoolStatus,
    PoolTrace,
    RecordedRequest,
    Residency,
    Service,
    Tenant,
)
from tokenmux.client.options import GenerateOptions
from tokenmux.client.resumption import Resumption
from tokenmux.client.sync import Client, Stream
from tokenmux.client.values import (
    Choice,
    Completion,
    Delta,
    Finish,
    GenerationEvent,
    Message,
    ModelMetadata,
    Phase,
    Prompt,
    PromptInfo,
    PromptLogprobs,
    State,
    TokenLogprobs,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
    Vectors,
)

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "CallFailed",
    "Choice",
    "Client",
    "Completion",
    "Delta",
    "DeviceState",
    "Durations",
    "ErrorDetails",
    "Finish",
    "GenerateOptions",
    "GenerationEvent",
    "InstanceStatus",
    "Message",
    "Model",
    "ModelMetadata",
    "ModelSizes",
    "Operation",
    "OperationState",
    "Phase",
    "PoolStatus",
    "PoolTrace",
    "Prompt",
    "PromptInfo",
    "PromptLogprobs",
    "RecordedRequest",
    "Residency",
    "Resumption",
    "Service",
    "State",
    "Stream",
    "Tenant",
    "TokenLogprobs",
    "TokenUsage",
    "ToolCall",
    "ToolCallDelta",
    "Vectors",
    "WrongArgument",
]
