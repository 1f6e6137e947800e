"""Steps through the Triton kernels: whole models in Triton's interpreter against the torch formulation, and
how rows are cut.

In float32 on the CPU, both paths must yield the same tokens; that company changes nothing must hold bit for
bit.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.network.interpreted import GRID, TILES, make_runner
from tokenmux.core.errors import InternalError, UnsupportedModel
from tokenmux.core.facts import KvShape
from tokenmux.core.sampling import LogitRules, Sampling
from tokenmux.kernels.interpreter import Interpreter
from tokenmux.kernels.sample import parameters, reference
from tokenmux.kernels.tiles import step_tiles
from tokenmux.models.catalogue import tiny
from tokenmux.models.network import kernel_path, rows
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.kernel_step import KernelBatch
from tokenmux.models.network.skeleton import empty_model
from tokenmux.models.network.staging import Staging
from tokenmux.models.sampling.draw import Draw, draw_rows
from tokenmux.models.sampling.log_probabilities import log_probabilities
from tokenmux.models.sampling.past_tokens import PastTokens

EVERY_DAY = ("gemma2", "gpt2", "gpt_oss", "llama")
"""Windows with capped scores, learned positions, sinks with experts, and the plain case."""

SHAPE = KvShape(n_layers=2, n_kv_heads=2, head_dim=32, dtype_bytes=4, block_size=8)
NODE = "tests.models.network.interpreted:"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    with Interpreter() as interpreter:
        yield interpreter


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, str] = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = str(tiny.create(family, tmp_path_factory.mktemp(family), dtype=torch.float32))
        return made[family]

    return folder


def serve(interpreter: Interpreter, folder: str, path: str, lengths, n_output, *, sampled=False, seed=0):
    return interpreter(
        NODE + "serve",
        folder=folder, lengths=list(lengths), n_output=n_output, path=path, sampled=sampled, seed=seed,
        result={},
    )["result"]  # fmt: skip


# ── whole models ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", EVERY_DAY)
def test_logits_equal_those_of_the_torch_formulation(interpreter, folder_of, family) -> None:
    found = interpreter(NODE + "logits", folder=folder_of(family), result={})["result"]
    assert found["difference"] < 1e-4
    assert found["untouched"]
    assert found["n_passes"] > 3
    assert not found["pieces_differ"]


@pytest.mark.parametrize("family", EVERY_DAY)
def test_tokens_equal_those_of_the_torch_formulation(interpreter, folder_of, family) -> None:
    through_torch, through_kernels = (
        serve(interpreter, folder_of(family), path, (1, 17, 40), 4) for path in ("torch", "kernels")
    )
    assert through_kernels == through_torch
    assert through_kernels["n_preemptions"] > 3
    assert through_kernels["n_moves"] > 0
    assert through_kernels["largest_batch"] == 3


def test_one_seed_draws_the_same_through_torch_and_through_the_kernels(interpreter, folder_of) -> None:
    drawn, others = (
        serve(interpreter, folder_of("llama"), path, (1, 17, 9), 8, sampled=True, seed=4)["tokens"]
        for path in ("torch", "kernels")
    )
    assert drawn == others
    greedy = serve(interpreter, folder_of("llama"), "torch", (1, 17, 9), 8)["tokens"]
    assert [a == b for a, b in zip(drawn, greedy, strict=True)] == [False, True, False]


def test_company_changes_no_token_drawn_or_likeliest(interpreter, folder_of) -> None:
    alone = serve(interpreter, folder_of("llama"), "alone", (3, 25, 9), 5, sampled=True)["tokens"]
    company = serve(interpreter, folder_of("llama"), "kernels", (3, 25, 9), 5, sampled=True, seed=1)
    assert company["tokens"] == alone
    assert company["n_preemptions"] > 3


def test_hidden_states_equal_those_of_the_torch_formulation(interpreter, folder_of) -> None:
    through_torch, through_kernels, alone = (
        interpreter(
            NODE + "prompt_pooled", folder=folder_of("gemma2"), lengths=[9, 37], path=path, result={}
        )["result"]["pooled"]
        for path in ("torch", "kernels", "alone")
    )
    assert through_kernels == alone
    for ours, theirs in zip(through_kernels, through_torch, strict=True):
        assert [rows[:2] for rows in ours] == [rows[:2] for rows in theirs]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(
                np.frombuffer(one[2], np.float32), np.frombuffer(other[2], np.float32), rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize("family", ["gemma2", "opt"])
def test_what_is_told_of_prompts_equals_the_torch_formulation(interpreter, folder_of, family) -> None:
    """In cells longer and shorter than a pass; and it is the same bit for bit in company."""
    found = {
        path: interpreter(
            NODE + "prompt_told", folder=folder_of(family), lengths=[9, 37, 6], path=path, result={}
        )["result"]
        for path in ("torch", "kernels", "alone")
    }
    assert [len(told) for told in found["torch"]["told"]] == [0, 36, 5]
    assert found["kernels"]["tokens"] == found["torch"]["tokens"]
    assert found["alone"] == found["kernels"]
    for ours, theirs in zip(found["kernels"]["told"], found["torch"]["told"], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.drawn == pytest.approx(other.drawn, abs=1e-4)
            assert [token for token, _ in one.likeliest] == [token for token, _ in other.likeliest]
            values = [[value for _, value in told.likeliest] for told in (one, other)]
            assert values[0] == pytest.approx(values[1], abs=1e-4)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_longer_and_more(interpreter, folder_of, family) -> None:
    lengths = (1, 17, 131)
    found = [serve(interpreter, folder_of(family), path, lengths, 8, seed=2) for path in ("torch", "kernels")]
    assert found[0] == found[1]
    alone, company = (
        serve(interpreter, folder_of(family), path, lengths, 8, sampled=True, seed=3)["tokens"]
        for path in ("alone", "kernels")
    )
    assert alone == company


# ── how rows are cut ────────────────────────────────────────────────────────────────────────────────────────


def lay_out(segments: list[Segment], n_blocks: int = 400) -> KernelBatch:
    s = SHAPE
    kv = torch.zeros(n_blocks, s.n_layers, 2, s.n_kv_heads, s.block_size, s.head_dim)
    return KernelBatch(segments, kv, s, grid=GRID, tiles=TILES, staging=Staging.on(kv.device))


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    made = []
    for index in range(draw(st.integers(1, 5))):
        n_prompt = draw(st.integers(1, 60))
        starts = [*range(0, n_prompt, GRID), *range(n_prompt, n_prompt + 30)]
        start = draw(st.sampled_from(starts))
        lines = [*range(start + GRID, n_prompt, GRID), *range(max(n_prompt, start + 1), n_prompt + 31)]
        end = draw(st.sampled_from(lines))
        blocks = list(range(20 * index, 20 * index + 20))
        made.append(Segment(list(range(start, end)), start, n_prompt, blocks, draw=draw(st.booleans())))
    return made


@given(segments())
def test_every_row_has_its_place_and_shapes_know_no_company(step: list[Segment]) -> None:
    batch = lay_out(step)
    written: dict[int, int] = {}
    drawn: list[int] = []
    for cut, on_device in batch.passes():
        n_rows = on_device.token_ids.shape[1]
        n = len(cut.segments)
        long_cell = len(cut.cells) == 1 and cut.cells[0].n == n_rows > TILES.rows
        assert long_cell or n_rows == TILES.rows
        assert on_device.token_ids.shape == on_device.positions.shape == (1, n_rows)
        assert len(on_device.logit_rows) in (0, TILES.rows)
        assert int(on_device.count) == n
        for row, (index, position) in enumerate(
            zip(cut.segments.tolist(), cut.positions.tolist(), strict=True)
        ):
            assert position == written.get(index, step[index].start)
            written[index] = position + 1
            assert int(on_device.token_ids[0, row]) == int(on_device.positions[0, row]) == position
            block = step[index].blocks[position // SHAPE.block_size]
            elements = SHAPE.block_bytes // SHAPE.dtype_bytes
            slot = block * elements + position % SHAPE.block_size * SHAPE.head_dim
            assert int(on_device.slots[row]) == slot
        for row, index in zip(cut.wanted, cut.drawing, strict=True):
            assert (int(cut.segments[row]), int(cut.positions[row])) == (index, step[index].end - 1)
        drawn.extend(cut.drawing)
        for cell in cut.cells:
            assert cell.start % GRID == 0
            assert cell.n <= GRID
        lengths = (cut.positions[cut.n_prompt_rows :] + 1).tolist()
        decode_rows = on_device.decode_rows
        assert (decode_rows.lengths.tolist() if decode_rows else []) == lengths, "no padding among them"
        if decode_rows:
            assert decode_rows.table.shape == (len(lengths), -(-max(lengths) // SHAPE.block_size))
    assert written == {index: segment.end for index, segment in enumerate(step)}
    assert sorted(drawn) == list(batch.drawing)


def test_logits_come_back_in_the_order_of_the_segments() -> None:
    """A short prompt's pass comes after those of long cells, whatever the order of the segments."""
    short, long = Segment([1, 2], 0, 2, [0]), Segment(list(range(16)), 0, 16, [1, 2])
    batch = lay_out([short, long])
    assert batch.n_passes == 2
    fake = iter([torch.full((8, 3), 1.0), torch.full((8, 3), 0.0)])
    logits = batch.run(lambda _: next(fake))
    assert logits[:, 0].tolist() == [0.0, 1.0]


def test_advancing_moves_every_row_by_one() -> None:
    batch = lay_out([Segment([5], 7, 3, [0, 1]), Segment([6], 3, 3, [2])])
    batch.advance([8, 9])
    ((_, on_device),) = batch.passes()
    assert on_device.token_ids[0, :3].tolist() == [8, 9, 0]
    assert on_device.positions[0, :3].tolist() == [8, 4, 0]
    assert on_device.decode_rows is not None
    assert on_device.decode_rows.lengths.tolist() == [9, 5]
    assert [batch.position(0), batch.position(1)] == [9, 5]
    for token in range(3):
        batch.advance([token, token])
    with pytest.raises(InternalError, match="no KV block for position 8: 1 blocks of 8"):
        batch.advance([1, 1])


def test_what_cannot_be_laid_out_or_advanced_is_refused() -> None:
    ok = Segment(list(range(16)), 16, 40, list(range(5)), draw=False)
    for bad in (replace(ok, start=8), replace(ok, token_ids=[]), replace(ok, blocks=[0, 1, 2])):
        with pytest.raises(InternalError):
            lay_out([bad])
    with pytest.raises(InternalError, match="at least one segment"):
        lay_out([])
    with pytest.raises(InternalError, match="KV tensor of shape"):
        KernelBatch([ok], torch.zeros(4, 2), SHAPE, grid=GRID, tiles=TILES, staging=Staging.on(CPU))
    for not_decoding in (
        ok,
        Segment([1, 2], 40, 40, list(range(6))),
        Segment([1], 40, 40, [0] * 6, draw=False),
    ):
        batch = lay_out([not_decoding])
        assert not batch.can_advance
        with pytest.raises(InternalError, match="only a step of one drawing decode row"):
            batch.advance([1])


# ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_draws_equal_the_reference_of_the_kernel(interpreter) -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    first = int(logits[4].argmax())
    draws = [
        Draw(Sampling(), 3),
        Draw(Sampling(1.0, top_k=5, seed=1), 10),
        Draw(Sampling(0.7, top_p=0.5, seed=2), 11),
        Draw(Sampling(2.0, seed=2**64 - 1), 12),
        Draw(Sampling(), 5, frozenset({first})),
        Draw(Sampling(0.0, top_k=3, seed=9), 6),
    ]
    banned = logits.clone()
    banned[4, first] = -torch.inf
    expected = reference.sample(
        banned,
        parameters.SamplingRows(
            temperature=torch.tensor([0.0, 1.0, 0.7, 2.0, 0.0, 0.0]),
            top_k=torch.tensor([300, 5, 300, 300, 300, 3], dtype=torch.int32),
            top_p=torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 1.0]),
            min_p=torch.zeros(6),
            seed=torch.tensor([0, 1, 2, -1, 0, 9]),
            position=torch.tensor([3, 10, 11, 12, 5, 6]),
        ),
    ).tokens.tolist()
    kept = logits.clone()
    padded = torch.cat((logits, torch.full((2, 300), torch.nan)))
    got = interpreter(NODE + "draws", logits=padded, wanted=draws, result={})
    assert got["result"]["tokens"] == expected
    assert expected[4] != first
    assert got["result"]["n_waits"] == 1, "once, for the tokens"
    assert torch.equal(got["logits"][:6], kept)


def test_draws_with_rules_are_those_of_a_processor(interpreter) -> None:
    logits = torch.randn(7, 300, generator=torch.Generator().manual_seed(4)) * 2
    first = int(logits[0].argmax())
    rules = LogitRules(1.4, 0.3, -0.2, bias=((5, 3.5), (6, -100.0)), forbidden=((first,), (1, 2), (400,)))
    past = PastTokens([first, 1, 2, 3], [9, 9, 1])
    draws = [
        Draw(Sampling(rules=rules), 5, (), past),
        Draw(Sampling(0.8, top_p=0.9, seed=2, min_p=0.05), 11),
        Draw(Sampling(1.1, top_k=50, seed=7, min_p=0.01, rules=rules), 12, {4, 5}, past),
        Draw(Sampling(), 5, {int(logits[3].argmax())}),
        Draw(Sampling(rules=LogitRules()), 6),
        Draw(Sampling(rules=LogitRules(2.0)), 6, {int(logits[5].argmax())}, PastTokens([7])),
        Draw(Sampling(1.0, seed=8), 6),
    ]
    got = interpreter(NODE + "draws", logits=logits, wanted=draws, result={})
    assert got["result"]["tokens"] == draw_rows(logits, draws)
    assert got["result"]["tokens"][0] != first
    assert got["result"]["n_waits"] == 2, "once for the rows with rules, once for the others"
    assert torch.equal(got["logits"], logits)


def test_draws_within_masks_are_those_of_a_processor(interpreter) -> None:
    """Fewer tokens are allowed than top-k would keep, and other rows have no mask."""
    n = 6
    logits = torch.randn(n, 300, generator=torch.Generator().manual_seed(5))
    mask = np.packbits(np.arange(300) % 97 == 3, bitorder="little").tobytes()
    rules = LogitRules(1.3, 0.5, 0.0, ((3, 9.0),), ((100,),))
    draws = [
        Draw(Sampling(), 1).within(mask),
        Draw(Sampling(1.0, top_k=50, seed=2), 2).within(mask),
        Draw(Sampling(1.0, seed=3), 3),
        Draw(Sampling(1.2, top_p=0.5, min_p=0.1, seed=4), 4, (3, 100)).within(mask),
        Draw(Sampling(1.0, seed=5, rules=rules), 5, (), PastTokens((3,), (194,))).within(mask),
        Draw(Sampling(1.0, seed=6, rules=rules), 6, (), PastTokens((3,), (194,))),
    ]
    tokens = interpreter(NODE + "draws", logits=logits, wanted=draws, result={})["result"]["tokens"]
    assert tokens == draw_rows(logits, draws)
    assert all(tokens[row] % 97 == 3 for row in (0, 1, 3, 4))
    assert tokens[4] != 100


def test_log_probabilities_are_those_of_a_processor(interpreter) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(4)) * 2
    logits[1, 40:80] = 9.0  # equal ones: the lower token first
    rules = LogitRules(bias=((5, 100.0),))
    draws = [
        Draw(Sampling(n_likeliest=3, rules=rules), 5),
        Draw(Sampling(1.0, seed=3, n_likeliest=5), 5),
        Draw(Sampling(), 5),
        Draw(Sampling(n_likeliest=0), 5),
    ]
    result = interpreter(NODE + "told", logits=logits, wanted=draws, result={})["result"]
    tokens, told = result["tokens"], result["told"]
    assert tokens == draw_rows(logits, draws)
    expected = log_probabilities(logits, tokens, draws)
    assert told[2] is expected[2] is None
    for here, there in zip(told, expected, strict=True):
        if there is not None:
            assert here.drawn == pytest.approx(there.drawn, abs=1e-5)
            assert [token for token, _ in here.likeliest] == [token for token, _ in there.likeliest]
            values = [value for _, value in there.likeliest]
            assert [value for _, value in here.likeliest] == pytest.approx(values, abs=1e-5)
    assert [token for token, _ in told[1].likeliest] == [40, 41, 42, 43, 44]
    assert tokens[0] == 5
    assert told[0].drawn < told[0].likeliest[0][1], "the bias is not in it"


# ── which path ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_path.tiles_for(torch.device("cpu"), SHAPE, 4) is None
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = torch.device("cuda")
    assert kernel_path.tiles_for(gpu, SHAPE, 4) == step_tiles(90, 32)
    for head_dim, n_heads, reason in (
        (40, 4, "heads of 40"),
        (512, 4, "heads of 512"),
        (64, 256, "128 query heads"),
    ):
        with pytest.raises(UnsupportedModel, match=f"{reason}.*device cpu"):
            kernel_path.tiles_for(gpu, replace(SHAPE, head_dim=head_dim), n_heads)
    capability = (7, 5)
    with pytest.raises(UnsupportedModel, match=r"8\.0 or newer, got 7\.5; serve"):
        kernel_path.tiles_for(gpu, SHAPE, 4)


def test_a_machine_without_triton_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("tokenmux.models.network.kernel_step")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tokenmux.kernels.kv_append.launch", None)
    with pytest.raises(UnsupportedModel, match=r"pip install 'tokenmux\[gpu\]'"):
        kernel_path.lay_out([], torch.zeros(1), SHAPE, grid=GRID, tiles=TILES, staging=Staging.on(CPU))


def test_what_no_image_holds_follows_the_weights(folder_of) -> None:
    """Rotary frequencies that stayed on the host would be copied to the device in every step."""
    skeleton = make_runner(folder_of("llama"), None)._skeleton
    skeleton.bind(torch.empty(skeleton.n_bytes, dtype=torch.uint8, device="meta"))
    buffers = dict(skeleton.model.named_buffers())
    assert buffers
    assert all(buffer.is_meta for buffer in buffers.values())


def test_a_device_whose_products_know_the_place_of_a_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows.check_rows_of(64, torch.float32, "cpu")
    honest = rows._linear

    def by_place(weight, kind):
        product = honest(weight, kind)
        return lambda x: product(x) + torch.arange(len(x))[:, None] * (1e-3 if kind == bad else 0)

    monkeypatch.setattr(rows, "_linear", by_place)
    for bad in (
        rows.Product(576, 1536),
        rows.Product(40, 24),
        rows.Product(40, 24, bias=True),
        rows.Product(24, 8, bias=True, transposed=True),
    ):
        with pytest.raises(UnsupportedModel, match=rf"depend on the place of a row .*n={bad.n}, k={bad.k}"):
            rows.check_rows_of.__wrapped__(8, torch.float32, "cpu", frozenset({bad}))
    bad = rows.Product(40, 24, bias=True)
    rows.check_rows_of.__wrapped__(8, torch.float32, "cpu", frozenset({rows.Product(40, 24)}))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", lambda h: {rows.Product(h, h)}),
        ("qwen2", lambda h: {rows.Product(h, h, bias=True), rows.Product(h, h)}),
        ("gpt2", lambda h: {rows.Product(3 * h, h, bias=True, transposed=True)}),
    ],
)
def test_a_models_own_products_are_looked_at(family, expected) -> None:
    """Biases and transposed weights ask other questions of a library than plain ones."""
    config = tiny.FAMILIES[family]()
    model = empty_model(config, torch.float32)
    found = rows.products_of(model)
    hidden = config.hidden_size
    n_heads = config.num_attention_heads
    query = hidden if family == "gpt2" else n_heads * getattr(config, "head_dim", hidden // n_heads)
    wanted = {replace(p, n=query if p.n == hidden else p.n) for p in expected(hidden)}
    if family == "qwen2":
        wanted = {p if p.bias else replace(p, n=hidden, k=query) for p in wanted}
    assert wanted <= found
    assert rows.Product(config.vocab_size, hidden) in found
    assert len(found) <= 8, "distinct ones only"
