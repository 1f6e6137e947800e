"""What the client refuses to send: keys in the clear, and values that no message can hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.client import AsyncClient, Client, Message, WrongArgument
from tokenmux.client.connection import Connection, is_local
from tokenmux.client.generation_requests import generate_request
from tokenmux.client.prompt_requests import conversation, tokenize_request

LOCAL = (
    "127.0.0.1:50051",
    "127.8.8.8:1",
    "localhost:50051",
    "localhost",
    "[::1]:50051",
    "unix:/run/tokenmux.sock",
    "unix:///run/tokenmux.sock",
    "unix-abstract:tokenmux",
    "ipv4:127.0.0.1:1",
    "ipv6:[::1]:1",
    "dns:///localhost:1",
    "dns:localhost:1",
    "::1",
)
REMOTE = (
    "10.1.2.3:50051",
    "gpu.example.org:443",
    "localhost.example.org:1",
    "0.0.0.0:1",
    "[2001:db8::1]:1",
    "dns:///gpu.example.org:1",
    "dns://127.0.0.1/gpu.example.org:1",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
    "xds:///127.0.0.1:1",
    "127.0.0.1.example.org:1",
    "",
)


@pytest.mark.parametrize("target", LOCAL)
def test_a_key_goes_to_this_machine(target: str) -> None:
    assert is_local(target)
    assert Connection(target, "sesame").metadata == (("authorization", "Bearer sesame"),)
    assert ("grpc.enable_http_proxy", 0) in Connection(target).options


@pytest.mark.parametrize("target", REMOTE)
def test_a_key_is_not_sent_in_the_clear_to_another_machine(target: str, tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="in the clear: connect with TLS"):
        Connection(target, "sesame")
    with pytest.raises(ValueError, match="in the clear"):
        Client(target, api_key="sesame")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    with pytest.raises(WrongArgument, match=r"empty\.pem has no certificate: give a PEM file"):
        Client(target, ca_file=empty)
    for secure in ({"tls": True}, {"ca_file": tmp_path / "ca.pem"}, {"insecure": True}):
        assert Connection(target, "sesame", **secure).metadata  # type: ignore[arg-type]
    assert Connection(target).metadata == ()


async def test_nor_by_the_asyncio_client() -> None:
    with pytest.raises(WrongArgument, match="in the clear"):
        AsyncClient("10.1.2.3:50051", api_key="sesame")


@pytest.mark.parametrize("key", ["sesame\n", "a\nb", " sesame", "", "schlüssel", "a\x00b", "\ud800"])
def test_a_key_that_no_header_can_carry_is_named(key: str) -> None:
    with pytest.raises(WrongArgument, match="the API key must be printable ASCII"):
        Connection("127.0.0.1:1", key)


@pytest.mark.parametrize("prompt", [b"hello", bytearray(b"hello"), memoryview(b"hello")])
def test_bytes_are_neither_text_nor_token_ids(prompt: Any) -> None:
    with pytest.raises(TypeError, match="decode them to text"):
        generate_request("m", prompt)
    with pytest.raises(TypeError, match="decode them to text"):
        conversation(prompt)


@pytest.mark.parametrize("messages", ["hello", [1, 2, 3], (1,)])
def test_what_is_not_a_conversation_does_not_skip_the_template(messages: Any) -> None:
    with pytest.raises(TypeError, match="chat takes messages"):
        conversation(messages)


@pytest.mark.parametrize("message", [{"role": "user", "content": "hi"}, Message("user", "hi")])
def test_a_single_message_belongs_in_a_list(message: Any) -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        generate_request("m", message)
    assert generate_request("m", [message]).chat.messages[0].content == "hi"


def test_token_ids_may_be_of_numpy() -> None:
    assert list(generate_request("m", list(np.arange(3))).token_ids.ids) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"min_tokens": -(2**40)}, "min_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"top_k": 10**11}, "top_k"),
        ({"stop": "\udcff"}, "strings"),
        ({"stop_token_ids": [-1]}, "token_ids"),
        ({"tenant": "\ud800"}, "tenant"),
    ],
)
def test_a_value_that_cannot_be_sent_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(WrongArgument, match=f"^{name}: .* cannot be sent"):
        generate_request("m", "hi", **options)


def test_so_is_text_that_is_not_unicode() -> None:
    with pytest.raises(WrongArgument, match=r"^text: "):
        generate_request("m", "\udcff" * 1000)
    with pytest.raises(WrongArgument, match=r"^content: "):
        generate_request("m", [Message("user", "\udcff")])
    with pytest.raises(WrongArgument, match=r"^model: "):
        tokenize_request("\udcff", "hi")
    with pytest.raises(WrongArgument, match=r"^ids: "):
        generate_request("m", [1, -1])


SCALARS = st.none() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers())


@given(
    SCALARS | st.text(st.characters(codec=None)),
    st.dictionaries(
        st.sampled_from(["max_tokens", "min_tokens", "temperature", "top_k", "top_p", "seed", "stop",
                         "stop_token_ids",
                         "ttft_s", "tpot_s", "tenant", "weight"]), SCALARS, max_size=4,
    ),
)  # fmt: skip
def test_whatever_is_given_is_sent_or_refused_in_two_ways(prompt: Any, options: dict[str, Any]) -> None:
    try:
        generate_request("m", prompt, **options).SerializeToString()
    except (TypeError, WrongArgument):
        return
