"""Device code of `sample`: five small kernels, none of which sorts.

    penalise    (row, tile of entries)     sparse, in place
    summarise   (row, tile of vocabulary)  the tile's maximum, its sum of exponentials, its n largest
    threshold   (row)                      the key that top_k, top_p and min_p leave standing
    draw        (row, tile of vocabulary)  the tile's first arrival
    finish      (row)                      first arrival of all, log-probabilities, n largest of all

A logit's *key* is its float32 bits, mapped to unsigned integers of the same order. The k-th largest key, or
the one down to which a probability sums up, is found two bits at a time, from the top, by counting (or
weighing) the keys above three candidates: 8 passes over the row for bfloat16, whose keys have 16 bits, 10 for
float16, 16 for float32; the row stays in the L2 cache. Rows that use neither make no pass.
"""

import triton
import triton.language as tl

from tokenmux.kernels.sample.parameters import GREEDY_BELOW
from tokenmux.kernels.sample.philox import log_exponentials

HEAT_FROM = tl.constexpr(GREEDY_BELOW)

UNALIGNED = (
    "tokens", "counts", "lengths", "repetition", "frequency", "presence",
    "temperature", "top_k", "top_p", "min_p", "seed", "position",
    "tile_peak", "tile_total", "tile_values", "tile_tokens", "thresholds", "tile_arrival", "tile_winner",
    "out_token", "out_log_probability", "out_top_tokens", "out_top_values",
)  # fmt: skip


@triton.jit
def load_row(logits, place, vocabulary):
    """Logits as float32; NaN, and what lies past the vocabulary, count as -inf."""
    x = tl.load(logits + place, mask=place < vocabulary, other=float("-inf")).to(tl.float32)
    return tl.where(x != x, float("-inf"), x)  # noqa: PLR0124 - only NaN differs from itself


@triton.jit
def order_key(x):
    """float32 to uint32, in the same order: negative numbers reversed, positive ones above them."""
    bits = x.to(tl.uint32, bitcast=True)
    return bits ^ tl.where(bits >> 31 != 0, 0xFFFFFFFF, 0x80000000).to(tl.uint32)


@triton.jit
def sixteenfold(extent, ALIGNED: tl.constexpr):
    """`extent`, which is a multiple of 16 if ALIGNED: written so that the compiler sees it and loads 16
    bytes."""
    if ALIGNED:
        return extent // 16 * 16
    else:
        return extent


@triton.jit(do_not_specialize=["row_stride", "entries"], do_not_specialize_on_alignment=UNALIGNED)
def penalise(
    logits, tokens, counts, lengths, repetition, frequency, presence, row_stride, entries, TILE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * TILE + tl.arange(0, TILE)
    used = entry < tl.load(lengths + row)
    token = tl.load(tokens + row * entries + entry, mask=used, other=0)
    count = tl.load(counts + row * entries + entry, mask=used, other=0).to(tl.float32)
    place = logits + row * row_stride + token
    x = tl.load(place, mask=used, other=0.0).to(tl.float32)
    strength = tl.load(repetition + row)
    x = tl.where(x > 0, x / strength, x * strength)
    x = x - tl.load(frequency + row) * count - tl.where(count > 0, tl.load(presence + row), 0.0)
    tl.store(place, x.to(logits.dtype.element_ty), mask=used)


@triton.jit(
    do_not_specialize=["row_stride", "vocabulary", "top_n"],
    do_not_specialize_on_alignment=UNALIGNED,
)
def summarise(
    logits, tile_peak, tile_total, tile_values, tile_tokens, row_stride, vocabulary, top_n,
    TILE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    slot = row * tl.num_programs(1) + tile
    place = tile * TILE + tl.arange(0, TILE)
    x = load_row(
        logits + row * sixteenfold(row_stride, ALIGNED), place, sixteenfold(vocabulary, ALIGNED)
    )  # fmt: skip
    peak = tl.max(x, axis=0)
    # A tile of nothing but -inf (a grammar's mask) has no peak to subtract; its sum is 0 all the same.
    base = tl.where(peak == float("-inf"), 0.0, peak)
    tl.store(tile_peak + slot, peak)
    tl.store(tile_total + slot, tl.sum(tl.exp(x - base), axis=0))
    for nth in range(top_n):
        value, best = tl.max(x, axis=0, return_indices=True)
        tl.store(tile_values + slot * top_n + nth, value)
        tl.store(tile_tokens + slot * top_n + nth, tile * TILE + best)
        x = tl.where(place == tile * TILE + best, float("-inf"), x)


@triton.jit
def weight_from(
    row_logits, k0, k1, k2, peak, temperature, vocabulary, TILE: tl.constexpr, WEIGH: tl.constexpr
):  # fmt: skip
    """For each of three keys: how many logits, or which unnormalised probability, lie at it or above. Lane
    sums first, so that the order of summation is the same for all three."""
    sum0 = tl.zeros([TILE], tl.float32)
    sum1 = tl.zeros([TILE], tl.float32)
    sum2 = tl.zeros([TILE], tl.float32)
    for start in range(0, vocabulary, TILE):
        place = start + tl.arange(0, TILE)
        x = load_row(row_logits, place, vocabulary)
        key = order_key(x)
        counted = place < vocabulary
        if WEIGH:
            weight = tl.where(counted, tl.exp((x - peak) / temperature), 0.0)
        else:
            weight = tl.where(counted, 1.0, 0.0)
        sum0 += tl.where(key >= k0, weight, 0.0)
        sum1 += tl.where(key >= k1, weight, 0.0)
        sum2 += tl.where(key >= k2, weight, 0.0)
    return tl.sum(sum0, axis=0), tl.sum(sum1, axis=0), tl.sum(sum2, axis=0)


@triton.jit
def largest_key(
    row_logits, target, peak, temperature, vocabulary,
    TILE: tl.constexpr, KEY_BITS: tl.constexpr, WEIGH: tl.constexpr,
):  # fmt: skip
    """The largest key at and above which at least `target` is counted (or weighed)."""
    found = tl.zeros([], tl.uint32)
    step = tl.full([], 1 << 30, tl.uint32)
    for _ in range(KEY_BITS // 2):
        k1 = found + step
        k2 = k1 + step
        k3 = k2 + step
        w1, w2, w3 = weight_from(
            row_logits, k1, k2, k3, peak, temperature, vocabulary, TILE, WEIGH
        )  # fmt: skip
        found = tl.where(w3 >= target, k3, tl.where(w2 >= target, k2, tl.where(w1 >= target, k1, found)))
        step = step >> 2
    return found


@triton.jit(
    do_not_specialize=["row_stride", "vocabulary", "tiles"],
    do_not_specialize_on_alignment=UNALIGNED,
)
def threshold(
    logits, temperature, top_k, top_p, min_p, tile_peak, thresholds,
    row_stride, vocabulary, tiles,
    TILE: tl.constexpr, TILES_PADDED: tl.constexpr, KEY_BITS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + row * sixteenfold(row_stride, ALIGNED)
    vocabulary = sixteenfold(vocabulary, ALIGNED)
    heat = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    least = tl.load(min_p + row)
    tile = tl.arange(0, TILES_PADDED)
    peak = tl.max(tl.load(tile_peak + row * tiles + tile, mask=tile < tiles, other=float("-inf")), axis=0)

    found = tl.zeros([], tl.uint32)
    if heat >= HEAT_FROM:
        if k < vocabulary:
            found = largest_key(
                row_logits, k.to(tl.float32), peak, heat, vocabulary, TILE, KEY_BITS, False
            )  # fmt: skip
        if p < 1:
            # Of what top_k left: no key below `found` can be the answer, since `found` itself reaches the
            # target.
            whole, _, _ = weight_from(row_logits, found, found, found, peak, heat, vocabulary, TILE, True)
            found = largest_key(
                row_logits, p * whole, peak, heat, vocabulary, TILE, KEY_BITS, True
            )  # fmt: skip
        if least > 0:
            found = tl.maximum(found, order_key(peak + heat * tl.log(least)))
    tl.store(thresholds + row, found.to(tl.int64))


@triton.jit(
    do_not_specialize=["row_stride", "vocabulary"],
    do_not_specialize_on_alignment=UNALIGNED,
)
def draw(
    logits, temperature, seed, position, thresholds, tile_arrival, tile_winner,
    row_stride, vocabulary,
    TILE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    slot = row * tl.num_programs(1) + tile
    place = tile * TILE + tl.arange(0, TILE)
    x = load_row(
        logits + row * sixteenfold(row_stride, ALIGNED), place, sixteenfold(vocabulary, ALIGNED)
    )  # fmt: skip
    heat = tl.load(temperature + row)
    if heat >= HEAT_FROM:
        noise = log_exponentials(tile * TILE, tl.load(seed + row), tl.load(position + row), TILE)
        kept = order_key(x) >= tl.load(thresholds + row).to(tl.uint32)
        x = tl.where(kept, x / heat - noise, float("-inf"))
    arrival, winner = tl.max(x, axis=0, return_indices=True)
    tl.store(tile_arrival + slot, arrival)
    tl.store(tile_winner + slot, tile * TILE + winner)


@triton.jit(
    do_not_specialize=["row_stride", "tiles", "top_n"],
    do_not_specialize_on_alignment=(*UNALIGNED, "logits"),
)
def finish(
    logits, tile_peak, tile_total, tile_values, tile_tokens, tile_arrival, tile_winner,
    out_token, out_log_probability, out_top_tokens, out_top_values,
    row_stride, tiles, top_n,
    TILES_PADDED: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES_PADDED)
    inside = tile < tiles
    slot = row * tiles + tile

    # Equal arrivals go to the lower tile and, within it, to the lower token.
    arrival = tl.load(tile_arrival + slot, mask=inside, other=float("-inf"))
    token = tl.load(tile_winner + row * tiles + tl.argmax(arrival, axis=0)).to(tl.int64)

    peaks = tl.load(tile_peak + slot, mask=inside, other=float("-inf"))
    totals = tl.load(tile_total + slot, mask=inside, other=0.0)
    peak = tl.max(peaks, axis=0)
    log_total = peak + tl.log(tl.sum(totals * tl.exp(peaks - peak), axis=0))
    tl.store(out_token + row, token)
    chosen = tl.load(logits + row * row_stride + token).to(tl.float32)
    tl.store(out_log_probability + row, chosen - log_total)

    if top_n > 0:
        candidate = tl.arange(0, CANDIDATES)
        listed = candidate < tiles * top_n
        place = row * tiles * top_n + candidate
        values = tl.load(tile_values + place, mask=listed, other=float("-inf"))
        for nth in range(top_n):
            value, best = tl.max(values, axis=0, return_indices=True)
            tl.store(out_top_values + row * top_n + nth, value - log_total)
            best_token = tl.load(tile_tokens + row * tiles * top_n + best).to(tl.int64)
            tl.store(out_top_tokens + row * top_n + nth, best_token)
            values = tl.where(candidate == best, float("-inf"), values)
