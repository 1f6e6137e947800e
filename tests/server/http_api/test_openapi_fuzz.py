"""What schemathesis makes of the OpenAPI document, valid and not, is answered as the document says, without
faults of the server, and leaves nothing behind."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.harness import Served, ServerThread, serving
from tests.server.scripted_models import FakeEntry, LetterTokenizer, facts
from tokenmux.core.pooling import Pooling
from tokenmux.server.http_api.http_server import HttpTransport
from tokenmux.server.http_api.openapi_document import openapi_document

DOCUMENT = json.loads(openapi_document())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SERVED: dict[str, Any] = {
    "model": "letters",
    "prompt": "a",
    "input": "a",
    "messages": [{"role": "user", "content": "a"}],
}
PATIENCE_S = 20


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    letters = LetterTokenizer(template="{{ tools }}<tool_call>")
    entry = FakeEntry(facts("letters"), letters=letters, embedding=Pooling("mean", True, 3))
    with ServerThread(lambda: serving(entry, http=HttpTransport())) as server:
        yield server.served


def cases(label: str) -> st.SearchStrategy[Any]:
    """Requests of an operation, as the document has them and near it. Half name a model that there is, and
    half of those have a prompt that fits: all others would be refused for that alone."""
    modes = schemathesis.GenerationMode
    found = st.one_of(*(OPERATIONS[label].as_strategy(mode) for mode in (modes.POSITIVE, modes.NEGATIVE)))
    return st.builds(_near, found, st.sampled_from([(), ("model",), tuple(SERVED)]))


def _near(case: Any, names: tuple[str, ...]) -> Any:
    if isinstance(case.body, dict):
        case.body |= {name: SERVED[name] for name in names}
    if case.path_parameters and names:
        case.path_parameters["name"] = "letters"
    return case


@pytest.mark.parametrize(
    "n_cases", [100, pytest.param(5000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("label", OPERATIONS)
def test_any_request_is_answered_as_the_document_says(label: str, n_cases: int, served: Served) -> None:
    url = f"http://127.0.0.1:{served.http_port}"
    statuses: Counter[int] = Counter()
    cancels = label.endswith("/cancel")
    generates = label.startswith("POST") and not cancels

    @settings(
        max_examples=n_cases if generates else min(n_cases, 100),
        suppress_health_check=list(HealthCheck),
        deadline=None,
        derandomize=n_cases < 1000,
        database=None,
    )
    @given(case=cases(label))
    def run(case: Any) -> None:
        answer = case.call(base_url=url, timeout=PATIENCE_S)
        case.validate_response(answer, checks=CHECKS)
        statuses[answer.status_code] += 1

    run()
    assert statuses[404 if cancels else 200]
    if generates:
        assert statuses[400]
    assert served.front.n_live == 0
