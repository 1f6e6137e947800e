"""A real server records what it served, and a plan is made of it: from memory, and from the file that it
wrote."""

import json
from pathlib import Path

from typer.testing import CliRunner

from tests.server.test_serve import real_server
from tokenmux.cli.app import app
from tokenmux.client import Client, PoolStatus
from tokenmux.workload.trace import read_trace

SECRET = "the vault opens with seven turns"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_was_served_is_counted_traced_recorded_and_planned_for(tmp_path: Path) -> None:
    with (
        real_server(tmp_path, "record_traffic: {path: seen.jsonl}\n") as (_, address),
        Client(address) as client,
    ):
        for number in range(6):
            client.generate(
                "gpt2" if number % 2 else "llama",
                SECRET,
                max_tokens=4 + number,
                ignore_end_tokens=True,
                tenant="bank" if number < 4 else "shop",
            )
        # The node tells of its use and of its channels at different times: the last of both comes by
        # itself.
        status = next(
            status
            for status in client.pool.watch()
            if sum(tenant.service.n_requests for tenant in status.tenants) == 6 and _accounts_agree(status)
        )
        tenants = {tenant.name: tenant.service for tenant in status.tenants}
        assert tenants["bank"].n_tokens == 4 + 5 + 6 + 7
        assert tenants["shop"].n_tokens == 8 + 9
        assert sum(sum(model.service.gaps.counts) for model in status.models) == 4 + 5 + 6 + 7 + 8 + 9 - 6
        assert sum(model.n_swaps_first for model in status.models) == 2

        trace = json.loads(client.pool.trace().chrome_trace)["traceEvents"]
        assert sum(event["ph"] == "b" for event in trace) == 6
        assert {event["name"] for event in trace if event["ph"] == "X" and event["tid"] == 0} == {
            "llama",
            "gpt2",
        }

        plan = json.loads(run("plan", "--from-server", address, "--no-compare", "--json"))
        assert (plan["models"], plan["requests"]) == (2, 6)
        n_tokens = plan["points"][0]["summary"]["n_tokens"]
    text = (tmp_path / "seen.jsonl").read_text()
    assert not any(word in text for word in SECRET.split() if len(word) > 3)
    recorded = read_trace(tmp_path / "seen.jsonl")
    assert sorted(line.output_tokens for line in recorded) == [4, 5, 6, 7, 8, 9]
    models = [f"{name}={tmp_path / name}" for name in ("llama", "gpt2")]
    again = json.loads(
        run("plan", *models, "--trace", str(tmp_path / "seen.jsonl"), "--no-compare", "--json")
    )
    assert again["points"][0]["summary"]["n_tokens"] == n_tokens == 39


def _accounts_agree(status: PoolStatus) -> bool:
    """Whether what tenants are charged is what the device was busy with, to a hundredth."""
    gpu_s = sum(tenant.service.gpu_s for tenant in status.tenants)
    busy_s = status.instances[0].compute_busy_s + sum(model.swap_exposed_s for model in status.models)
    return abs(gpu_s - busy_s) < 0.01 * busy_s
