"""Any JSON that the OpenAPI document allows, and near it, is served or refused with a reason; the next
request is served as if it had not been."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.harness import Served, ServerThread, serving
from tokenmux.server.http_api.body_fields import NOT_SERVED
from tokenmux.server.http_api.http_server import HttpTransport
from tokenmux.server.http_api.request_bodies import ChatBody, CompletionBody

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 100)
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.sampled_from(["letters", "", "x" * 300, "(pool)", "\x00", "\udfff", "system", "text", "[/b]"])
    | st.text(max_size=20)
)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "tool", ""])},
        optional={"content": st.text(max_size=9) | ANY, "tool_calls": ANY, "name": ANY},
    ),
    max_size=4,
)
GOOD = {
    "model": st.just("letters"),
    "prompt": st.text(max_size=9) | st.lists(st.integers(0, 255), max_size=9),
    "messages": MESSAGES,
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans() | ANY}),
    "max_tokens": st.integers(0, 70),
    "max_completion_tokens": st.integers(0, 70),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=18),
    "temperature": st.floats(-1, 11),
}
NAMES = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, *NOT_SERVED, "unknown", "é\n"})
BODIES = st.fixed_dictionaries(
    {"model": GOOD["model"] | ANY},
    optional={name: GOOD.get(name, ANY) | ANY if name in GOOD else ANY for name in NAMES if name != "model"},
)
"""Nearly all fields at once are nearly always refused: see `FEW`."""
FEW = st.lists(st.sampled_from(NAMES), max_size=3).flatmap(
    lambda names: st.fixed_dictionaries(
        {
            **{name: GOOD[name] for name in ("model", "messages", "prompt")},
            **{name: GOOD.get(name, ANY) for name in names},
        }
    )
)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with ServerThread(lambda: serving(http=HttpTransport())) as server:
        yield server.served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{served.http_port}", timeout=60) as client:
        yield client


def answered(client: httpx.Client, path: str, raw: bytes) -> int:
    """The status of an answer that has the dialect's form."""
    answer = client.post(path, content=raw, headers={"content-type": "application/json"})
    if answer.status_code == 200:
        assert answer.text.endswith("data: [DONE]\n\n") or "choices" in answer.json()
    else:
        error: dict[str, Any] = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert 400 <= answer.status_code < 500, error
        assert error["message"]
    return answer.status_code


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_any_body_is_served_or_refused(path: str, client: httpx.Client, served: Served) -> None:
    statuses: set[int] = set()

    @settings(max_examples=400, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(body=BODIES | FEW)
    def run(body: dict[str, Any]) -> None:
        statuses.add(answered(client, path, json.dumps(body).encode()))

    run()
    assert 200 in statuses
    assert 400 in statuses
    good = {"model": "letters", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    assert answered(client, path, json.dumps(good).encode()) == 200
    assert served.front.n_live == 0


def test_any_bytes_are_refused(client: httpx.Client) -> None:
    @settings(max_examples=200)
    @given(raw=st.binary(max_size=60) | st.text(alphabet='{}[]":,0e-\\un', max_size=40).map(str.encode))
    def run(raw: bytes) -> None:
        assert answered(client, "/v1/completions", raw) in (400, 404)

    run()
