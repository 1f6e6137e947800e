"""Requests of strangers: other hosts, keys in the wrong place, bodies that are too much; and TLS."""

import json
import ssl
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.harness import serving
from tests.server.http_api.http_calls import CHAT, TEXT, http
from tests.server.test_listening import OPENSSL, pair
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.server.http_api.http_server import HttpTransport
from tokenmux.server.listening import tls_context

KEYS = (Key.of("one", Scope.INFERENCE, "secret"),)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST.:80", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("models.example.org", 200),
        ("evil.example.com", 421),
        ("evil.example.com:8000", 421),
        ("127.0.0.1.evil.example.com", 421),
        ("localhost.evil.example.com", 421),
        ("[::1].evil.example.com", 421),
        ("\xe9vil", 421),
    ],
)
async def test_a_page_cannot_rebind_its_name(host: str, status: int) -> None:
    async with http(transport=HttpTransport(hosts=("models.example.org",))) as (_, client):
        for path in ("/v1/models", "/health", "/openapi.json", "/nothing"):
            answer = await client.get(path, headers={"host": host.encode("latin-1")})
            assert answer.status_code == (status if path != "/nothing" or status == 421 else 404)
            if status == 421:
                assert "http_hosts" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "secret"},
        {"api-key": "secret"},
        {"authorization": "Basic c2VjcmV0"},
        {"authorization": "secret"},
        {"authorization": "Digest username=secret"},
        {"cookie": "authorization=Bearer secret"},
        {"authorization": "Bearer " + "x" * 10_000},
        {"authorization": "Bearer \xff"},
    ],
)
async def test_a_key_in_the_wrong_place_is_told_the_right_one(headers: dict[str, str]) -> None:
    async with http(keys=KEYS) as (served, client):
        raw = [(name, value.encode("latin-1")) for name, value in headers.items()]
        answer = await client.post("/v1/completions", json=TEXT, headers=raw)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (401, "invalid_api_key")
        assert "Bearer" in error["message"]
        assert "secret" not in error["message"]
        assert served.front.n_live == 0


MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", "x" * MEGABYTE),
        ("stop", ["x"] * (MEGABYTE // 4)),
        ("stop_token_ids", [1] * (MEGABYTE // 2)),
        ("bad_words", ["x" * 300] * (MEGABYTE // 300)),
        ("logit_bias", {str(n): 1 for n in range(MEGABYTE // 16)}),
        ("user", "x" * MEGABYTE),
        ("model", "x" * MEGABYTE),
        ("tools", [{"type": "function", "function": {"name": f"f{n}"}} for n in range(MEGABYTE // 64)]),
        ("messages", [{"role": "user", "content": "x"}] * (MEGABYTE // 40)),
        ("x" * MEGABYTE, 1),
    ],
)
async def test_a_megabyte_of_anything_is_refused_at_once(field: str, value: Any) -> None:
    async with http() as (served, client):
        began_s = time.process_time()
        answer = await client.post("/v1/chat/completions", json=CHAT | {field: value})
        assert time.process_time() - began_s < 5
        if len(field) < 100:
            assert answer.status_code in (400, 404)
            assert answer.json()["error"]["param"] == field
            assert len(answer.text) < 3000
        assert sum(len(name) + len(said) for name, said in answer.headers.items()) < 2000
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert served.front.n_live == 0


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"]
)
async def test_a_form_of_a_page_is_refused(kind: str) -> None:
    """Browsers send these to other sites without asking the site first."""
    async with http() as (_, client):
        body = json.dumps(TEXT).encode()
        answer = await client.post("/v1/completions", content=body, headers={"content-type": kind})
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]["message"]
        asked = await client.options("/v1/completions", headers={"origin": "http://evil.example.com"})
        assert asked.status_code == 405
        assert "access-control-allow-origin" not in asked.headers


@OPENSSL
async def test_the_dialect_over_tls(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path, "server")
    transport = HttpTransport(tls=tls_context(certificate, key))
    trusted = ssl.create_default_context(cafile=str(certificate))
    async with serving(http=transport) as served:
        url = f"https://localhost:{served.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=trusted) as client:
            answer = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
            assert answer.text.endswith("data: [DONE]\n\n")
        async with httpx.AsyncClient(base_url=url.replace("https", "http"), timeout=60) as client:
            with pytest.raises(httpx.TransportError):
                await client.get("/health")
        assert served.front.n_live == 0


async def test_a_compressed_body_is_refused_by_its_encoding() -> None:
    async with http() as (_, client):
        for encoding, status in (("gzip", 415), ("identity", 200), ("", 200)):
            answer = await client.post("/v1/completions", json=TEXT, headers={"content-encoding": encoding})
            assert answer.status_code == status
        answer = await client.post("/v1/completions", json=TEXT, headers={"content-encoding": "br"})
        assert "send the body as it is, not compressed" in answer.json()["error"]["message"]
