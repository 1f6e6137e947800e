"""Other programs that speak OpenAI's dialect, unchanged but for the address (extra `clients`)."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.harness import ServerThread, serving
from tokenmux.server.http_api.http_server import HttpTransport

pytestmark = [
    pytest.mark.nightly,
    # What they do when they are imported is theirs.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MESSAGES: Any = [{"role": "user", "content": "a"}]


@pytest.fixture
def url() -> Iterator[str]:
    with ServerThread(lambda: serving(http=HttpTransport())) as server:
        yield f"http://127.0.0.1:{server.served.http_port}/v1"


def test_litellm(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the internet
    litellm = pytest.importorskip("litellm")
    options: Any = {"model": "openai/letters", "api_base": url, "api_key": "none", "max_tokens": 3}
    answer = litellm.completion(messages=MESSAGES, **options)
    assert answer.choices[0].message.content == "<=>"
    assert answer.usage.total_tokens == 7
    chunks = litellm.completion(messages=MESSAGES, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "<=>"
    with pytest.raises(litellm.BadRequestError, match="temperature 11"):
        litellm.completion(messages=MESSAGES, temperature=11, **options)


async def test_litellm_with_asyncio(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    answer = await litellm.acompletion(
        model="openai/letters", api_base=url, api_key="none", max_tokens=3, messages=MESSAGES
    )
    assert answer.choices[0].message.content == "<=>"


def test_langchain(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model="letters", base_url=url, api_key="none", max_tokens=3)
    assert model.invoke("a").content == "<=>"
    assert "".join(chunk.content for chunk in model.stream("a")) == "<=>"
    assert [one.content for one in model.batch(["a", "a"])] == ["<=>", "<=>"]
    text = langchain.OpenAI(model="letters", base_url=url, api_key="none", max_tokens=3)
    assert text.invoke("a") == "bcd"


def test_langchain_counts_the_tokens_of_a_stream(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        model="letters", base_url=url, api_key="none", max_tokens=3, stream_usage=True
    )
    chunks = list(model.stream("a"))
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == 3
