"""`/metrics` over HTTP: who may read it, where it is, and that what happened is in it."""

import asyncio

import httpx
import pytest

from tests.server.harness import Served, serving
from tests.server.http_api.http_calls import TEXT, http, nothing_lives
from tests.server.sample_reports import node_status, node_use
from tokenmux.core.phases import RequestPhase
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Register, Submit
from tokenmux.messages.reports import Broken, Finished, PhaseChanged, Report, Tokens
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.server.front.limits import Limits
from tokenmux.server.http_api.http_server import HttpTransport
from tokenmux.server.observability import exposition

KEYS = (
    Key.of("team", Scope.INFERENCE, "secret"),
    Key.of("prometheus", Scope.METRICS, "scrape"),
    Key.of("boss", Scope.ADMIN, "boss"),
)


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "TEXT_FRESH_S", 0.0)
    monkeypatch.setattr(exposition, "MAKING_SHARE", float("inf"))


async def heard(served: Served, *reports: Report) -> None:
    """Let the node say something, and wait until the front has heard it."""
    for report in reports:
        version = served.front.changes.version
        served.hub.post(report)
        await served.front.changes.after(version)


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    """The lines of the plain text."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


@pytest.mark.parametrize(
    ("authorization", "status"),
    [(None, 401), ("secret", 403), ("other", 401), ("scrape", 200), ("boss", 200)],
)
async def test_who_may_read_them(authorization: str | None, status: int) -> None:
    headers = {} if authorization is None else {"authorization": f"Bearer {authorization}"}
    async with http(keys=KEYS) as (_, client):
        answer = await client.get("/metrics", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert "the key 'team' is for inference; /metrics needs one for metrics" in answer.text


async def test_a_key_for_metrics_opens_nothing_else() -> None:
    headers = {"authorization": "Bearer scrape"}
    async with http(keys=KEYS) as (_, client):
        answer = await client.post("/v1/completions", json=TEXT, headers=headers)
        assert answer.status_code == 403
        assert "the key 'prometheus' is for metrics" in answer.text
        found = await client.get("/metrics", headers=headers)
    assert 'tokenmux_requests_refused_total{reason="forbidden"} 1.0' in found.text.splitlines()


async def test_methods_and_formats() -> None:
    async with http() as (_, client):
        assert (await client.post("/metrics")).status_code == 405
        assert (await client.get("/metrics/")).status_code == 404
        plain = await client.get("/metrics")
        assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        accept = {"accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2"}
        open_metrics = await client.get("/metrics", headers=accept)
        assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert open_metrics.text.endswith("# EOF\n")


async def test_an_address_of_their_own_is_the_only_one() -> None:
    async with (
        serving(http=HttpTransport(), metrics=HttpTransport(), keys=KEYS) as served,
        httpx.AsyncClient() as client,
    ):
        theirs, developers = (f"http://127.0.0.1:{port}" for port in (served.metrics_port, served.http_port))
        headers = {"authorization": "Bearer scrape"}
        assert (await client.get(f"{developers}/metrics", headers=headers)).status_code == 404
        assert (await client.get(f"{theirs}/metrics")).status_code == 401
        assert (await client.get(f"{theirs}/metrics", headers=headers)).status_code == 200
        answer = await client.get(f"{theirs}/v1/models", headers=headers)
        assert answer.status_code == 404
        assert "/metrics is the only one here" in answer.text
        foreign = await client.get(f"{theirs}/metrics", headers=headers | {"host": "evil.example"})
        assert foreign.status_code == 421


async def test_without_the_dialect_they_have_an_address_too() -> None:
    async with serving(metrics=HttpTransport()) as served, httpx.AsyncClient() as client:
        assert served.http_port is None
        answer = await client.get(f"http://127.0.0.1:{served.metrics_port}/metrics")
        assert "tokenmux_node_up 0.0" in answer.text.splitlines()


async def test_what_happens_is_counted_once() -> None:
    async with http(auto=False, limits=Limits(max_requests=1)) as (served, client):
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(client.post("/v1/completions", json=TEXT))
            request = (await served.hub.next(Submit)).request.id
            assert (await client.post("/v1/completions", json=TEXT)).status_code == 429
            assert (await client.post("/v1/completions", json=TEXT | {"model": "evil"})).status_code == 404
            served.hub.post(PhaseChanged(request, RequestPhase.LOADING))
            served.hub.post(PhaseChanged(request, RequestPhase.RUNNING))
            served.hub.post(Tokens(request, 0, (98, 99, 100), 102.5))
            served.hub.post(Finished(request, FinishReason.LENGTH, 102.5))
        assert answer.result().status_code == 200
        found = await figures(client)
    label = '{model_name="letters"}'
    assert found['tokenmux_request_success_total{finished_reason="length",model_name="letters"}'] == 1
    assert found['tokenmux_request_success_total{finished_reason="abort",model_name="letters"}'] == 0
    assert found[f"tokenmux_e2e_request_latency_seconds_sum{label}"] == 2.5
    assert found[f"tokenmux_request_queue_time_seconds_count{label}"] == 1
    assert found['tokenmux_requests_refused_total{reason="overloaded"}'] == 1
    assert found['tokenmux_requests_refused_total{reason="not_found"}'] == 1
    assert found["tokenmux_max_num_requests"] == 1
    assert not [series for series in found if "evil" in series]


async def test_a_client_that_leaves_is_an_abort() -> None:
    async with http(auto=False) as (served, client):
        async with client.stream("POST", "/v1/completions", json=TEXT | {"stream": True}):
            await served.hub.next(Submit)
        await nothing_lives(served)
        found = await figures(client)
    assert found['tokenmux_request_success_total{finished_reason="abort",model_name="letters"}'] == 1
    assert not [series for series in found if "e2e" in series]


async def test_time_for_weights_is_told_apart() -> None:
    now_s = 100.0
    async with http(auto=False, clock=lambda: now_s) as (served, client):
        answer = asyncio.create_task(client.post("/v1/completions", json=TEXT))
        request = (await served.hub.next(Submit)).request.id
        for phase, at_s in (
            (RequestPhase.QUEUED, 101.0),
            (RequestPhase.LOADING, 102.0),
            (RequestPhase.LOADING, 103.0),
            (RequestPhase.QUEUED, 104.5),
            (RequestPhase.RUNNING, 106.0),
            (RequestPhase.LOADING, 107.0),
            (RequestPhase.RUNNING, 108.0),
        ):
            now_s = at_s
            served.hub.post(PhaseChanged(request, phase))
            await asyncio.sleep(0)
        served.hub.post(Tokens(request, 0, (98, 99, 100), 109.0))
        served.hub.post(Finished(request, FinishReason.LENGTH, 109.0))
        await answer
        found = await figures(client)
    label = '{model_name="letters"}'
    assert found[f"tokenmux_request_queue_time_seconds_sum{label}"] == 6.0
    assert found[f"tokenmux_request_loading_time_seconds_sum{label}"] == 2.5 + 1.0


async def test_a_node_that_is_replaced_takes_no_figure_with_it() -> None:
    async with http() as (served, client):
        await heard(served, node_status("letters"), node_use("letters"))
        before = await figures(client)
        served.hub.unread()
        await heard(served, Broken("gone"))
        between = await figures(client)
        await served.hub.next(Register)  # the next node is there, and told of the model
        await heard(served, node_status("letters"), node_use("letters"))
        after = await figures(client)
    tokens = 'tokenmux_generation_tokens_total{model_name="letters"}'
    assert (before[tokens], between[tokens], after[tokens]) == (104, 104, 208)
    assert (before["tokenmux_node_up"], between["tokenmux_node_up"]) == (1, 0)
    assert after["tokenmux_node_recoveries_total"] == 1
    totals = [s for s in before if s.partition("{")[0].endswith("_total") and s.startswith("tokenmux")]
    assert len(totals) >= 40
    assert [series for series in totals if not before[series] <= between[series] <= after[series]] == []


async def test_asking_sends_the_node_nothing() -> None:
    async with http() as (served, client):
        served.hub.unread()
        await figures(client)
        assert served.hub.unread() == []
