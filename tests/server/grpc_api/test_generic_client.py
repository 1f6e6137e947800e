"""A client that knows nothing of the API but what the server's reflection says, as grpcurl does."""

from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.server.harness import ServerThread, serving


def call(channel: grpc.Channel, pool: DescriptorPool, service: str, method: str, said: Any) -> list[Any]:
    """The answers to a message that is written in JSON."""
    found = pool.FindServiceByName(service).methods_by_name[method]
    request = json_format.ParseDict(said, GetMessageClass(found.input_type)())
    answer_class = GetMessageClass(found.output_type)
    kind = channel.unary_stream if found.server_streaming else channel.unary_unary
    asked = kind(
        f"/{service}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer_class.FromString,
    )(request, timeout=10)
    answers = list(asked) if found.server_streaming else [asked]
    return [json_format.MessageToDict(answer, preserving_proto_field_name=True) for answer in answers]


def test_reflection_is_enough_to_generate() -> None:
    with ServerThread(serving) as server, grpc.insecure_channel(server.served.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = [name for name in database.get_services() if name.startswith("tokenmux.")]
        assert "tokenmux.v1.InferenceService" in services
        pool = DescriptorPool(database)
        for name in services:
            assert pool.FindServiceByName(name).methods
        request = {"model": "letters", "text": "a", "stopping": {"max_tokens": 3}}
        inference = "tokenmux.v1.InferenceService"
        (answer,) = call(channel, pool, inference, "Generate", request)
        assert answer["choices"][0]["text"] == "bcd"
        events = call(channel, pool, inference, "GenerateStream", {"request": request})
        assert "".join(event["tokens"].get("text", "") for event in events if "tokens" in event) == "bcd"
