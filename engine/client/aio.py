"""The asyncio client: the same methods as the blocking one, to be awaited."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from tokenmux.client import (
    generation_requests,
    generation_values,
    pool_requests,
    pool_values,
    prompt_requests,
)
from tokenmux.client.connection import DEFAULT_ADDRESS, Connection
from tokenmux.client.deadlines import deadline_s
from tokenmux.client.errors import CallFailed, translated
from tokenmux.client.operations import AsyncOperations
from tokenmux.client.operator_values import (
    Model,
    ModelSizes,
    Operation,
    PoolStatus,
    PoolTrace,
    RecordedRequest,
)
from tokenmux.client.options import GenerateOptions
from tokenmux.client.resumption import DEFAULT_RESUMPTION, GenerationProgress, Resumption
from tokenmux.client.values import Completion, GenerationEvent, Message, ModelMetadata, Prompt, Vectors
from tokenmux.client.watched_status import WatchedStatus
from tokenmux.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    planning_pb2,
    planning_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
)


class AsyncStream:
    """The events of one generation, to iterate over. Leaving its context, or `cancel`, ends the
    generation."""

    def __init__(self, begin: Callable[[GenerationProgress], Any], progress: GenerationProgress) -> None:
        self._begin = begin
        self._progress = progress
        self._cancelled = asyncio.Event()
        self._call = begin(progress)

    async def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        try:
            while True:
                try:
                    with translated():
                        async for response in self._call:
                            event = self._event(response)
                            if event is not None:
                                yield event
                    return
                except CallFailed as error:
                    await self._go_on(error)
        finally:
            self.cancel()  # a caller that stops iterating does not want the rest

    def _event(self, response: inference_pb2.GenerateStreamResponse) -> GenerationEvent | None:
        return generation_values.event(response) if self._progress.take(response) else None

    def cancel(self) -> None:
        """End the generation: the server frees at once what the request held."""
        self._cancelled.set()
        self._call.cancel()

    async def _go_on(self, error: CallFailed) -> None:
        """Call again after a loss. Raises the error if that is not to be, or if it was cancelled since."""
        wait_s = self._progress.wait_s(error)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._cancelled.wait()
                raise error
        self._call = self._begin(self._progress)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()


class AsyncClient:
    """A connection to a tokenmux server.

    >>> async with AsyncClient("127.0.0.1:50051") as client:
    ...     print((await client.generate("smol", "The capital of France is", max_tokens=8)).text)
    ...     async for event in client.stream("smol", "Once upon a time"):
    ...         if isinstance(event, Delta):
    ...             print(event.text, end="", flush=True)

    Every method raises CallFailed if the server refuses or cannot be reached, and takes `timeout_s`, a
    deadline for the whole call in seconds (None: no deadline). Belongs to the event loop on which it was
    made.
    """

    def __init__(
        self,
        target: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        tls: bool = False,
        ca_file: Path | None = None,
        insecure: bool = False,
        resumption: Resumption | None = DEFAULT_RESUMPTION,
    ) -> None:
        """Connect to `target`: HOST:PORT, or several as "ipv4:ADDRESS:PORT,ADDRESS:PORT", of which the first
        that answers is used. Generations go on by themselves if their server is lost, as `resumption` says
        (None: they end). `tls` trusts the system's authorities, `ca_file` (PEM, implies TLS) only its
        own.

        A key for another machine needs one of them, or `insecure`, which sends it readable. Raises
        WrongArgument.
        """
        connection = Connection(target, api_key, tls, ca_file, insecure)
        credentials = connection.credentials()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=connection.options)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=connection.options)
        self._metadata = connection.metadata
        self._resumption = resumption
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.models = AsyncModels(self._channel, self._metadata)
        """Registering, loading, pinning. Needs an admin key if the server has keys."""
        self.operations = AsyncOperations(self._channel, self._metadata)
        """Work that goes on without its caller. Needs an admin key if the server has keys."""
        self.pool = AsyncPool(self._channel, self._metadata)
        """The state and size of the pool. Needs an admin key if the server has keys."""
        self.planning = AsyncPlanning(self._channel, self._metadata)
        """Input for capacity planning. Needs an admin key if the server has keys."""

    async def generate(
        self,
        model: str,
        prompt: Prompt,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Generate, and return the whole answer. `options` are those of GenerateOptions. If the server is
        lost meanwhile, the same is asked of another one, or when it is back; `timeout_s` is for all of it.

        >>> (await client.generate("smol", "1, 2, 3,", max_tokens=6, stop=".")).text
        """
        request = generation_requests.stream_request(model, prompt, **options)
        progress = GenerationProgress(request, timeout_s, self._resumption)
        while True:
            try:
                with translated():
                    answer = await self._inference.Generate(
                        progress.request.request, timeout=progress.left_s, metadata=self._metadata
                    )
                    return generation_values.completion(answer)
            except CallFailed as error:
                await asyncio.sleep(progress.wait_s(error))

    def stream(
        self,
        model: str,
        prompt: Prompt,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncStream:
        """Generate, and return the events as they arrive: PromptInfo, then State and Delta, and Finish at the
        end.

        If the server is lost meanwhile, the stream goes on at another one, or when it is back: nothing comes
        twice. `timeout_s` is for all of it.

        >>> async with client.stream("smol", "Tell me a story", max_tokens=200) as events:
        ...     text = "".join([event.text async for event in events if isinstance(event, Delta)])
        """
        request = generation_requests.stream_request(model, prompt, **options)
        return AsyncStream(self._begin_stream, GenerationProgress(request, timeout_s, self._resumption))

    def _begin_stream(self, progress: GenerationProgress) -> Any:
        return self._inference.GenerateStream(
            progress.request, timeout=progress.left_s, metadata=self._metadata
        )

    async def chat(
        self,
        model: str,
        messages: Sequence[Message] | Sequence[Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Answer a conversation, using the model's own template. `stream` also takes messages.

        >>> (await client.chat("smol", [{"role": "user", "content": "Who are you?"}])).text
        """
        return await self.generate(
            model, prompt_requests.conversation(messages), timeout_s=timeout_s, **options
        )

    async def cancel(self, request_id: str, *, tenant: str = "", timeout_s: float | None = None) -> None:
        """End a live request by its id: the caller's own or, for administrators, those of `tenant`, or (if
        that is empty) of all."""
        request = generation_requests.cancel_request(request_id, tenant)
        with translated():
            await self._inference.CancelGeneration(
                request, timeout=deadline_s(timeout_s), metadata=self._metadata
            )

    async def embed(
        self,
        model: str,
        inputs: Sequence[str | Sequence[int]],
        *,
        dimensions: int | None = None,
        tenant: str = "",
        weight: float | None = None,
        timeout_s: float | None = None,
    ) -> Vectors:
        """A vector for each input, a text or a list of token ids. `dimensions` shortens them, if the model
        says that it can."""
        request = prompt_requests.embed_request(model, inputs, dimensions, tenant, weight)
        with translated():
            response = await self._inference.Embed(
                request, timeout=deadline_s(timeout_s), metadata=self._metadata
            )
            return generation_values.vectors(response)

    async def tokenize(
        self, model: str, prompt: Prompt, *, timeout_s: float | None = None
    ) -> tuple[int, ...]:
        """The token ids of a text or a conversation, as `generate` would use them."""
        request = prompt_requests.tokenize_request(model, prompt)
        with translated():
            response = await self._inference.Tokenize(
                request, timeout=deadline_s(timeout_s), metadata=self._metadata
            )
            return tuple(response.token_ids)

    async def metadata(self, model: str, *, timeout_s: float | None = None) -> ModelMetadata:
        """Context length, vocabulary, and whether the model can chat."""
        request = inference_pb2.ModelMetadataRequest(model=model)
        with translated():
            return generation_values.metadata(
                await self._inference.ModelMetadata(
                    request, timeout=deadline_s(timeout_s), metadata=self._metadata
                )
            )

    async def ready(self, model: str | None = None, *, timeout_s: float | None = None) -> bool:
        """True if the server, or one model, accepts requests."""
        with translated():
            if model is None:
                server = inference_pb2.ServerReadyRequest()
                answer = await self._inference.ServerReady(
                    server, timeout=deadline_s(timeout_s), metadata=self._metadata
                )
            else:
                request = inference_pb2.ModelReadyRequest(model=model)
                answer = await self._inference.ModelReady(
                    request, timeout=deadline_s(timeout_s), metadata=self._metadata
                )
        return bool(answer.ready)

    async def close(self) -> None:
        """Cancel running calls and disconnect."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncModels:
    """`AsyncClient.models`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = models_pb2_grpc.ModelServiceStub(channel)  # type: ignore[no-untyped-call]
        self._metadata = metadata
        self._operations = AsyncOperations(channel, metadata)

    async def list(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """All models by name, including refused ones."""
        request = models_pb2.ListModelsRequest()
        found: tuple[Model, ...] = ()
        while True:
            response = await self._call(self._stub.ListModels, request, timeout_s)
            found += tuple(map(pool_values.model, response.models))
            if not response.next_page_token:
                return found
            request.page_token = response.next_page_token

    async def get(self, name: str, *, timeout_s: float | None = None) -> Model:
        return pool_values.model(
            (await self._call(self._stub.GetModel, models_pb2.GetModelRequest(name=name), timeout_s)).model
        )

    async def register(self, name: str, source: str = "", *, timeout_s: float | None = None) -> Model:
        """Add a model from a folder of safetensors or a GGUF file on the server's machine. May take minutes.

        Without a source, add a model that is already in the catalogue, such as one pulled while the server
        ran. The server goes on if the caller leaves; `start_registration` can also be watched and cancelled.
        """
        operation = await self.start_registration(name, source, timeout_s=timeout_s)
        async for _ in self._operations.watch(operation.name, timeout_s=timeout_s):
            pass
        return await self.get(name, timeout_s=timeout_s)

    async def start_registration(
        self, name: str, source: str = "", *, timeout_s: float | None = None
    ) -> Operation:
        """Begin to add a model, and return at once. `operations.watch` tells how it goes on."""
        request = models_pb2.RegisterModelRequest(name=name, source=source)
        response = await self._call(self._stub.RegisterModel, request, timeout_s)
        return pool_values.operation(response.operation)

    async def unregister(self, name: str, *, force: bool = False, timeout_s: float | None = None) -> None:
        """Remove a model; with `force` even if it has live requests, which then fail."""
        request = models_pb2.UnregisterModelRequest(name=name, force=force)
        await self._call(self._stub.UnregisterModel, request, timeout_s)

    async def load(self, name: str, *, wait: bool = False, timeout_s: float | None = None) -> Model:
        """Load a model onto a device; with `wait`, return once it is there."""
        request = models_pb2.LoadModelRequest(name=name, wait=wait)
        return pool_values.model((await self._call(self._stub.LoadModel, request, timeout_s)).model)

    async def unload(self, name: str, *, timeout_s: float | None = None) -> Model:
        """Take a model off all devices."""
        request = models_pb2.UnloadModelRequest(name=name)
        return pool_values.model((await self._call(self._stub.UnloadModel, request, timeout_s)).model)

    async def pin(self, name: str, pinned: bool = True, *, timeout_s: float | None = None) -> Model:
        """Keep a model on a device, or (`pinned=False`) let it leave again."""
        request = models_pb2.PinModelRequest(name=name, pinned=pinned)
        return pool_values.model((await self._call(self._stub.PinModel, request, timeout_s)).model)

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        with translated():
            return await method(request, timeout=deadline_s(timeout_s), metadata=self._metadata)


class AsyncPool:
    """`AsyncClient.pool`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = pool_pb2_grpc.PoolServiceStub(channel)  # type: ignore[no-untyped-call]
        self._metadata = metadata

    async def status(self, *, timeout_s: float | None = None) -> PoolStatus:
        """The present state of the pool."""
        request = pool_pb2.GetStatusRequest()
        response = await self._call(self._stub.GetStatus, request, timeout_s)
        status = response.status
        while response.next_page_token:
            request.page_token = response.next_page_token
            response = await self._call(self._stub.GetStatus, request, timeout_s)
            status.models.extend(response.status.models)
        return pool_values.pool_status(status)

    async def watch(
        self, *, min_interval_s: float = 0.0, timeout_s: float | None = None
    ) -> AsyncIterator[PoolStatus]:
        """The state of the pool, now and at every change, at least `min_interval_s` seconds apart. Ends
        when the server stops."""
        request = pool_pb2.WatchStatusRequest(min_interval_s=min_interval_s)
        watched = WatchedStatus()
        call = self._stub.WatchStatus(request, timeout=deadline_s(timeout_s), metadata=self._metadata)
        try:
            with translated():
                async for response in call:
                    yield watched.take(response)
        finally:
            call.cancel()

    async def trace(self, last_s: float = 0.0, *, timeout_s: float | None = None) -> PoolTrace:
        """The steps, copies and requests that ended within the last `last_s` seconds; 0: all that the pool
        remembers."""
        with translated():
            request = pool_pb2.GetTraceRequest(last_s=last_s)
            return pool_values.pool_trace(
                await self._stub.GetTrace(request, timeout=deadline_s(timeout_s), metadata=self._metadata)
            )

    async def resize(
        self, arena_bytes: int, instance: int | None = None, *, timeout_s: float | None = None
    ) -> int:
        """Change the memory for weights and KV cache of a device (by default the only one) to `arena_bytes`.
        Returns its size afterwards.

        Its requests wait until the arena is empty and resized, or move, and then continue. This and the other
        changes are completed even if the call is abandoned, and hold until the server restarts.
        """
        request = pool_requests.resize_request(arena_bytes, instance)
        return int((await self._call(self._stub.ResizeDevice, request, timeout_s)).arena_bytes)

    async def add_device(
        self,
        kind: str | None = None,
        *,
        arena_bytes: int = 0,
        gpu: str | int = "",
        paged_kv: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Add a device. Returns its number once it serves.

        `kind` is "cpu" or "cuda" (None: that of the first device), `arena_bytes` its memory (0: as much as
        the first device of its kind, or most of a GPU's), `gpu` an index or UUID (empty: the next free one).
        """
        request = pool_requests.add_device_request(kind, arena_bytes, gpu, paged_kv)
        return int((await self._call(self._stub.AddDevice, request, timeout_s)).instance)

    async def drain_device(
        self, instance: int, *, undo: bool = False, timeout_s: float | None = None
    ) -> None:
        """Place nothing on a device any longer, and return when it is empty; with `undo`, let it serve
        again."""
        request = pool_requests.drain_request(instance, undo=undo)
        await self._call(self._stub.DrainDevice, request, timeout_s)

    async def remove_device(self, instance: int, *, timeout_s: float | None = None) -> None:
        """Drain a device and take it out of the pool."""
        await self._call(self._stub.RemoveDevice, pool_requests.remove_request(instance), timeout_s)

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        with translated():
            return await method(request, timeout=deadline_s(timeout_s), metadata=self._metadata)


class AsyncPlanning:
    """`AsyncClient.planning`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = planning_pb2_grpc.PlanningServiceStub(channel)  # type: ignore[no-untyped-call]
        self._metadata = metadata

    async def catalogue(self, *, timeout_s: float | None = None) -> tuple[ModelSizes, ...]:
        """The sizes of all models, by name."""
        with translated():
            request = planning_pb2.GetCatalogueRequest()
            response = await self._stub.GetCatalogue(
                request, timeout=deadline_s(timeout_s), metadata=self._metadata
            )
            return tuple(pool_values.sizes(message) for message in response.models)

    async def recorded_traffic(
        self, last_s: float = 0.0, *, timeout_s: float | None = None
    ) -> tuple[RecordedRequest, ...]:
        """Ended requests that arrived within the last `last_s` seconds, in order of arrival; 0: all that
        the server remembers."""
        request = planning_pb2.GetRecordedTrafficRequest(last_s=last_s)
        call = self._stub.GetRecordedTraffic(request, timeout=deadline_s(timeout_s), metadata=self._metadata)
        with translated():
            return tuple(
                [pool_values.recorded(line) async for response in call for line in response.requests]
            )
