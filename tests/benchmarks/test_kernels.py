"""The benchmark of attention on the CPU compares things that compute the same, and reports every case."""

import json

import pytest
import torch

from benchmarks import kernels


@torch.inference_mode()
def test_both_sides_of_every_ratio_agree() -> None:
    cases = [
        kernels.decode_case(kernels.QWEN, 3, 150),
        kernels.prefill_case(kernels.SMOLLM2, 0, 40),
        kernels.prefill_case(kernels.SMOLLM2, 512, 40),
    ]
    kernels.check(cases)
    wrong = kernels.Case("wrong", "decode", cases[0].ours, lambda: cases[0].floor() + 1, cases[0].copy)
    with pytest.raises(AssertionError):
        kernels.check([wrong])


@torch.inference_mode()
def test_appending_writes_what_the_floor_writes() -> None:
    case = kernels.append_case(kernels.SMOLLM2, 20)
    keys, blocks = case.floor(), case.ours()
    assert isinstance(keys, torch.Tensor)
    assert isinstance(blocks, torch.Tensor)

    def lines(kv: torch.Tensor) -> set[tuple[float, ...]]:
        """The key of a token and head, wherever it lies."""
        return {tuple(line.tolist()) for line in kv.float().reshape(-1, kv.shape[-1])}

    assert lines(keys) <= lines(blocks)


def test_every_case_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    case = kernels.Case("decode_x", "decode", lambda: None, lambda: None, lambda: None)
    others = [
        kernels.Case(f"{what}_x", what, lambda: None, lambda: None, lambda: None)
        for what in ("prefill", "append")
    ]
    rounds = [kernels.Round(ours_s=2.0, floor_s=1.0, copy_s=0.5)]
    kernels.report([case, *others], dict.fromkeys(("decode_x", "prefill_x", "append_x"), rounds))
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["metrics"]["decode_x_over_sdpa"] == 0.5
    assert document["metrics"]["decode_x_over_copy_p80"] == 0.25
    assert document["metrics"]["append_over_sdpa"] == 0.5
    assert document["targets"]["decode_over_sdpa"]["met"] is False
