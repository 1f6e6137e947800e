"""Steps: what is refused, what is skipped, and where the shapes that exactness rests on come from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tokenmux.core.errors import BadCheckpoint, InternalError, UnsupportedModel
from tokenmux.core.facts import KvShape
from tokenmux.core.sampling import Sampling
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.model_facts import kv_shape, max_context
from tokenmux.models.catalogue.probe import image_in_memory, probe
from tokenmux.models.network import rows
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.rows import Product, RowRule, row_rule
from tokenmux.models.network.runner import Runner
from tokenmux.models.network.skeleton import Skeleton, state_names
from tokenmux.models.weights.manifest import Manifest

GRID = 16


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, Manifest]:
    folder = tiny.create("llama", tmp_path_factory.mktemp("llama"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return image_in_memory(state_names(model), torch.bfloat16)


@pytest.fixture
def runner(image: tuple[torch.Tensor, Manifest]) -> Runner:
    runner = Runner(Skeleton(tiny.FAMILIES["llama"](), image[1]), shape(), prefill_chunk_tokens=GRID)
    runner.bind(image[0])
    return runner


def shape() -> KvShape:
    return kv_shape(tiny.FAMILIES["llama"](), torch.bfloat16, 8)


def empty_kv(n_blocks: int = 40) -> torch.Tensor:
    s = shape()
    return torch.full(
        (n_blocks, s.n_layers, 2, s.n_kv_heads, s.block_size, s.head_dim), torch.nan, dtype=torch.bfloat16
    )


def test_a_chunk_off_the_grid_is_refused(runner: Runner) -> None:
    kv = empty_kv()
    ok = Segment(list(range(16)), 16, 40, list(range(10)), draw=False)
    runner.prepare([ok], kv)
    for bad in (replace(ok, start=8), replace(ok, token_ids=list(range(8))), replace(ok, blocks=[0, 1, 2])):
        with pytest.raises(InternalError):
            runner.prepare([bad], kv)
    for nothing in ([], [replace(ok, token_ids=[])]):
        with pytest.raises(InternalError, match="at least one"):
            runner.prepare(nothing, kv)
    with pytest.raises(InternalError, match="KV tensor of shape"):
        runner.prepare([ok], kv[:, :1])


def test_only_a_decode_step_can_be_advanced_and_only_into_its_blocks(runner: Runner) -> None:
    kv = empty_kv()
    prompt = runner.prepare([Segment([1, 2, 3], 0, 3, [0])], kv)
    assert not prompt.can_advance
    with pytest.raises(InternalError, match="only a step of one drawing decode row"):
        prompt.advance([1])
    runner.step(prompt)
    batch = runner.prepare([Segment([4], 3, 3, [0])], kv)
    for _ in range(4):
        token = runner.step(batch)[0]
        assert token is not None
        batch.advance([token])
    with pytest.raises(InternalError, match="no KV block for position 8"):
        batch.advance([1])


def test_segments_that_draw_nothing_give_none(runner: Runner) -> None:
    kv = empty_kv()
    long = Segment(list(range(32)), 0, 40, [0, 1, 2, 3, 4], draw=False)
    short = Segment([5, 6], 0, 2, [5])
    assert runner.step(runner.prepare([long], kv)) == [None]
    drawn = runner.step(runner.prepare([long, short, long], kv))
    assert drawn[0] is drawn[2] is None
    assert drawn[1] == runner.step(runner.prepare([short], kv))[0]


def test_min_tokens_keeps_stop_tokens_away(runner: Runner) -> None:
    prompt = Segment([1, 2, 3], 0, 3, [0, 1])
    likeliest = runner.step(runner.prepare([prompt], empty_kv()))[0]
    assert likeliest is not None
    guarded = replace(prompt, min_tokens=1, stop_token_ids=frozenset({likeliest}))
    other = runner.step(runner.prepare([guarded], empty_kv()))[0]
    assert other not in (None, likeliest)
    # One token is out already, so nothing is forbidden any more.
    later = Segment([likeliest], 3, 3, [0, 1], min_tokens=1, stop_token_ids=frozenset(range(320)))
    kv = empty_kv()
    runner.step(runner.prepare([prompt], kv))
    assert runner.step(runner.prepare([later], kv))[0] is not None
    sampled = replace(guarded, sampling=Sampling(temperature=0.01, seed=1))
    assert runner.step(runner.prepare([sampled], empty_kv()))[0] == other


def test_an_unbound_model_cannot_run(image: tuple[torch.Tensor, Manifest], runner: Runner) -> None:
    batch = runner.prepare([Segment([1, 2, 3], 0, 3, [0])], empty_kv())
    expected = runner.step(batch)
    runner.unbind()
    with pytest.raises(InternalError, match="not bound"):
        runner.step(batch)
    with pytest.raises(InternalError, match="weights must be"):
        runner.bind(image[0][:-1])
    moved = torch.zeros(image[0].numel() + 128, dtype=torch.uint8)
    moved[64 : 64 + image[0].numel()] = image[0]
    runner.bind(moved[64:])
    image_before = moved.clone()
    assert runner.bound
    assert runner.step(batch) == expected
    assert torch.equal(moved, image_before)


def test_unbinding_lets_go_of_the_weights(image: tuple[torch.Tensor, Manifest]) -> None:
    skeleton = Skeleton(tiny.FAMILIES["llama"](), image[1])
    skeleton.bind(image[0])
    first = next(iter(skeleton.model.parameters()))
    assert first.untyped_storage().data_ptr() == image[0].untyped_storage().data_ptr()
    skeleton.unbind()
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_a_manifest_that_does_not_fit_the_config_is_refused(image: tuple[torch.Tensor, Manifest]) -> None:
    manifest = image[1]
    name = "model.norm.weight"
    without = {n: t for n, t in manifest.tensors.items() if n != name}
    with pytest.raises(BadCheckpoint, match=f"tensor {name} is missing"):
        Skeleton(tiny.FAMILIES["llama"](), replace(manifest, tensors=without))
    reshaped = {**manifest.tensors, name: replace(manifest.tensors[name], shape=(64, 2))}
    with pytest.raises(BadCheckpoint, match=f"tensor {name} has shape"):
        Skeleton(tiny.FAMILIES["llama"](), replace(manifest, tensors=reshaped))


@pytest.mark.parametrize("n_rows", [1, 2, 3, 5, 17, 32])
def test_decode_logits_have_the_same_bits_in_any_company(runner: Runner, n_rows: int) -> None:
    """One row of 150 keys (two tiles) among others of 1 to 300 keys: bit for bit the logits that it has
    alone."""
    generator = torch.Generator().manual_seed(n_rows)
    s = shape()
    kv = torch.randn(
        40 * n_rows, s.n_layers, 2, s.n_kv_heads, s.block_size, s.head_dim, generator=generator
    ).bfloat16()
    order = torch.randperm(len(kv), generator=generator).tolist()
    lengths = [150, *torch.randint(1, 300, (n_rows - 1,), generator=generator).tolist()]
    segments = [Segment([7], length - 1, 0, order[40 * i : 40 * i + 40]) for i, length in enumerate(lengths)]
    alone = [runner.logits(runner.prepare([segment], kv.clone()))[0] for segment in segments]
    together = runner.logits(runner.prepare(segments, kv))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=False))


def test_rows_are_padded_by_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [RowRule(2, 1).padded(n) for n in (0, 1, 2, 3)] == [2, 2, 2, 3]
    assert [RowRule(4, 4).padded(n) for n in (1, 4, 5)] == [4, 4, 8]

    def exact(rule: RowRule, dtype: torch.dtype, kind: Product, n_threads: int) -> bool:
        return rule.multiple >= 16

    monkeypatch.setattr(rows, "_fits", exact)
    rows._row_rule.cache_clear()
    assert row_rule(torch.bfloat16) == RowRule(16, 16)
    monkeypatch.setattr(rows, "_fits", lambda rule, *_: rule.most == 64)
    rows._row_rule.cache_clear()
    assert row_rule(torch.bfloat16) == RowRule(2, 1, most=64)
    monkeypatch.setattr(rows, "_fits", lambda rule, dtype, kind, n: kind.n != 192 or rule.most == 16)
    rows._row_rule.cache_clear()
    assert row_rule(torch.bfloat16) == RowRule(2, 1)
    assert row_rule(torch.bfloat16, frozenset((Product(192, 576), Product(96, 64)))) == RowRule(2, 1, most=16)
    monkeypatch.setattr(rows, "_fits", lambda *_: False)
    rows._row_rule.cache_clear()
    with pytest.raises(UnsupportedModel, match="depend on the number of rows"):
        row_rule(torch.bfloat16)
    rows._row_rule.cache_clear()


def test_products_agree_where_the_rule_lets_them() -> None:
    """Kernels that change at 18 and at 33 rows, and one in which a row's place matters."""
    bits = {
        n: tuple(range(n)) if n < 18 else tuple(range(100, 100 + n)) for n in (1, 2, 3, 8, 16, 17, 18, 32, 33)
    }
    assert not rows._agree(bits, RowRule(2, 1))
    assert not rows._agree(bits, RowRule(2, 1, most=32))
    assert rows._agree(bits, RowRule(2, 1, most=16))
    assert rows._agree(bits, RowRule(32, 32))
    assert not rows._agree(bits | {8: ()}, RowRule(2, 1, most=16))
    assert rows._agree(bits | {8: ()}, RowRule(16, 16, most=16))


def test_sums_in_another_order_show() -> None:
    """Of random numbers the order of summing changes one result in thousands; of these, it changes nearly
    every row."""
    x, weight = (t.float() for t in rows._operands(torch.bfloat16, "cpu", Product(96, 512)))
    whole, other = ((x[:32] @ weight.T).bfloat16(), (x[:32].flip(1) @ weight.flip(1).T).bfloat16())
    assert sum(a == b for a, b in zip(rows._hashes(whole), rows._hashes(other), strict=True)) < 3


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_the_probe_lets_every_family_pass(family: str) -> None:
    probe(tiny.FAMILIES[family]())


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("falcon", "attention cannot be replaced"),
        ("bloom", r"layers \[0, 1\] do not call the attention function"),
        ("dbrx", "no dbrx model can be built from config.json"),
        ("mamba", "state beside keys and values"),
        ("qwen3_next", r"state beside keys and values \(layers of type linear_attention\)"),
        ("bamba", "state beside keys and values"),
        ("llama4_text", "logits differ"),
    ],
)
def test_the_probe_refuses_what_cannot_be_served(model_type: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        probe(AutoConfig.for_model(model_type))
    assert model_type in str(caught.value)


def test_rotary_scaling_that_depends_on_the_batch_never_comes_to_it() -> None:
    factors = [1.0] * 16
    config = AutoConfig.for_model(
        "phi3",
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        original_max_position_embeddings=256,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": factors,
            "long_factor": [4.0] * 16,
        },
    )
    assert max_context(config) == 256


def test_a_tiny_checkpoint_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    files = [
        (tiny.create("gpt2", tmp_path / f"{i}", seed=seed) / "model.safetensors").read_bytes()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert files[0] == files[1] != files[2]
