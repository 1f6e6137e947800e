"""A whole server with real models: outputs obey what their requests ask for, whatever happens in their
middle."""

import json
import os
import re
import signal
from pathlib import Path

import jsonschema
import pytest

from tests.server.test_serve import executors_of, node_of, real_server
from tokenmux.client import CallFailed, Client, Delta, Finish

pytestmark = pytest.mark.timeout(300)

DRAW = {"max_tokens": 400, "temperature": 1.0}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SUMS = 'root ::= term ("+" term){2,4}\nterm ::= [0-9] [0-9]?\n'


def test_outputs_obey_what_was_asked_for_also_when_processes_are_killed(tmp_path: Path) -> None:
    with real_server(tmp_path) as (process, address), Client(address) as client:
        for seed in range(5):
            whole = client.generate("llama", "Say:", json_schema=PERSON, seed=seed, **DRAW)  # type: ignore[arg-type]
            if whole.finish.reason == "stop":
                jsonschema.validate(json.loads(whole.text), PERSON)
        told = client.generate("gpt2", "Say:", regex=r"\d{3}-\d{4}", seed=1, **DRAW)  # type: ignore[arg-type]
        assert re.fullmatch(r"[0-9]{3}-[0-9]{4}", told.text), told
        told = client.generate("gpt2", "Say:", choice=["yes", "no"], **DRAW)  # type: ignore[arg-type]
        assert told.text in ("yes", "no")
        told = client.generate("llama", "Say:", grammar=SUMS, seed=3, **DRAW)  # type: ignore[arg-type]
        assert re.fullmatch(r"\d{1,2}(\+\d{1,2}){2,4}", told.text), told

        # A stop string cuts what obeys; min_tokens holds an end back while the grammar allows another token.
        held = {"regex": "[ab]{1,200}", "seed": 2, "temperature": 1.0, "max_tokens": 60}
        long = client.generate("gpt2", "Say:", min_tokens=12, **held)  # type: ignore[arg-type]
        assert re.fullmatch("[ab]{1,200}", long.text)
        assert len(long.token_ids) >= 12
        cut = client.generate("gpt2", "Say:", min_tokens=30, stop=long.text[3:5], **held)  # type: ignore[arg-type]
        assert (cut.text, cut.finish.stop_string) == (
            long.text[: long.text.index(long.text[3:5])],
            long.text[3:5],
        )
        told = client.generate("gpt2", "Say:", choice=["yes"], min_tokens=50, max_tokens=60)
        assert (told.text, told.finish.reason) == ("yes", "stop"), "the grammar decides"

        for wrong, reason in (
            ({"json_schema": '{"type": "text"}'}, "the JSON schema cannot be used"),
            ({"regex": "(a"}, "regular expression"),
            ({"regex": "a", "ignore_end_tokens": True}, "ignore_end_tokens"),
        ):
            with pytest.raises(CallFailed, match=reason):
                client.generate("llama", "Say:", **wrong)  # type: ignore[arg-type]

        options = {"json_schema": {"type": "array", "items": {"type": "integer"}, "minItems": 60}, "seed": 5}
        options |= DRAW | {"max_tokens": 120}
        alone = client.generate("llama", "Once upon a time", **options)  # type: ignore[arg-type]
        assert len(alone.token_ids) == 120

        def killing(kill: list[int]) -> list[int]:
            tokens: list[int] = []
            for event in client.stream("llama", "Once upon a time", **options):  # type: ignore[arg-type]
                if isinstance(event, Delta):
                    tokens += event.token_ids
                    while len(tokens) >= 10 and kill:
                        os.kill(kill.pop(), signal.SIGKILL)
                elif isinstance(event, Finish):
                    assert event.reason == "length"
            return tokens

        assert killing(executors_of(process.pid)) == list(alone.token_ids)
        assert killing([node_of(process.pid)]) == list(alone.token_ids)
