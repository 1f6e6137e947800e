"""Step times from a file: what is read, and what is refused."""

from pathlib import Path

import pytest

from tokenmux.core.cost import StepWork
from tokenmux.core.errors import ConfigError
from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.planner.question import Question, world_of
from tokenmux.simulator.profiles import StepFit
from tokenmux.simulator.scenario import Hardware, market, true_cost
from tokenmux.simulator.step_file import fit_for, read_steps

HEADER = "architecture,prefill_ms,prefill_us,pair_ns,decode_ms,context_us,row_us\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "steps.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_models_own_row_counts_before_its_architectures_and_that_before_all_others(tmp_path: Path) -> None:
    fits = read_steps(
        written(tmp_path, HEADER + "qwen2.5-7b,1,2,3,4,5,6\nmine,1,2,3,40,5,6\n*,1,2,3,400,5,6\n")
    )
    assert fits[0] == ("qwen2.5-7b", StepFit(1, 2, 3, 4, 5, 6))
    found = [
        fit_for(fits, model, kind)
        for model, kind in (("mine", "qwen2.5-7b"), ("m", "qwen2.5-7b"), ("m", "x"))
    ]
    assert [fit.decode_ms for fit in found if fit is not None] == [40, 4, 400]
    assert fit_for(fits[:2], "m", "x") is None


def test_a_simulation_takes_as_long_as_the_file_says(tmp_path: Path) -> None:
    models = market({"m": architecture("qwen2.5-7b")})
    given = Hardware(steps=read_steps(written(tmp_path, HEADER + "qwen2.5-7b,1,2,0,123,0,0\n")))
    device = given.instance(models)
    (facts,) = models.facts.values()
    assert true_cost(models, given, device).step_s(facts, StepWork(decode_rows=1)) == pytest.approx(0.123)
    assert true_cost(models, Hardware(), device).step_s(facts, StepWork(decode_rows=1)) < 0.05


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"),
        (HEADER, "no rows"),
        ("architecture,decode_ms\nm,1\n", "the columns must be architecture,prefill_ms"),
        (HEADER + "m,1,2,3,4,5\n", "line 2: the columns must be"),
        (HEADER + "m,1,2,3,4,5,6,7\n", "line 2: the columns must be"),
        (HEADER + ",1,2,3,4,5,6\n", "must be a name"),
        (HEADER + "m,nan,2,3,4,5,6\n", "prefill_ms is nan, and must lie between 0 and 60000"),
        (HEADER + "m,1,2,3,inf,5,6\n", "decode_ms is inf"),
        (HEADER + "m,1,2,3,-4,5,6\n", "decode_ms is -4"),
        (HEADER + "m,1,2,3,1e999,5,6\n", "decode_ms is 1e999"),
        (HEADER + "m,1,2,-1e9,4,5,6\n", "pair_ns is -1e9"),
        (HEADER + "m,1,two,3,4,5,6\n", "prefill_us is 'two', and not a number"),
        (HEADER + "m,1,2,3,4,5,6\nm,1,2,3,4,5,6\n", "line 3: m has a row already"),
        (HEADER + "m" * 1_000_001, "longer than"),
        (HEADER + "m" * 500 + ",1,2,3,4,5,6\n", "must be a name"),
        (HEADER + '"m,1,2', "steps.csv"),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="step times") as refused:
        read_steps(written(tmp_path, text))
    assert said in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="step times"):
        read_steps(tmp_path / "missing.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="step times"):
        read_steps(tmp_path / "bytes.csv")


def test_a_file_for_nobody_is_refused_and_one_for_some_is_noted(tmp_path: Path) -> None:
    def asked(row: str, notes: list[str]) -> None:
        hardware = Hardware(steps=read_steps(written(tmp_path, HEADER + row)))
        world_of(
            Question(["qwen2.5-7b", "llama2-13b"], hardware, rate_rps=1.0, duration_s=10.0), notes.append
        )

    notes: list[str] = []
    with pytest.raises(ConfigError, match="no row for a model of this plan"):
        asked("yi-1.5-9b,1,2,3,4,5,6\n", notes)
    asked("qwen2.5-7b,1,2,3,4,5,6\n", notes)
    assert notes == ["1 of 2 models have no row in the file of step times: measured ones are used for them"]
