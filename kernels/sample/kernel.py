"""Device code of `sample`: four small kernels, none of which sorts.

    summarise   (row, tile of vocabulary)  the tile's maximum, sum of exponentials, and n largest
    threshold   (row)                      the largest logit, the key that top_k, top_p and min_p leave
    draw        (row, tile of vocabulary)  the tile's first arrival
    finish      (row)                      first arrival of all, log-probabilities, n largest of all

A logit's *key* is its float32 bits, mapped to unsigned integers of the same order. The k-th largest key, or
the one down to which a probability sums up, is found two bits at a time, from the top, by counting (or
weighing) the keys above three candidates: 8 passes over the row for bfloat16, whose keys have 16 bits, 10 for
float16, 16 for float32; the row stays in the L2 cache. Rows that use none of the three make no pass.
"""

import triton
import triton.language as tl

from tokenmux.kernels import kinds
from tokenmux.kernels.sample.parameters import GREEDY_BELOW
from tokenmux.kernels.sample.philox import noise_of_tile
from tokenmux.kernels.variant import kernel

HEAT_FROM = tl.constexpr(GREEDY_BELOW)


@triton.jit
def load_row(logits, place, vocabulary):
    """Logits as float32. NaN, and everything past the vocabulary, counts as -inf."""
    x = tl.load(logits + place, mask=place < vocabulary, other=float("-inf")).to(tl.float32)
    return tl.where(x != x, float("-inf"), x)  # noqa: PLR0124 - only NaN differs from itself


@triton.jit
def order_key(x):
    """float32 to uint32 in the same order: negative numbers reversed, positive ones above them."""
    bits = x.to(tl.uint32, bitcast=True)
    return bits ^ tl.where(bits >> 31 != 0, 0xFFFFFFFF, 0x80000000).to(tl.uint32)


@triton.jit
def sixteenfold(extent, ALIGNED: tl.constexpr):
    """`extent`, a multiple of 16 if ALIGNED: written so that the compiler sees that and loads 16 bytes."""
    if ALIGNED:
        return extent // 16 * 16
    else:
        return extent


@kernel
def summarise(
    logits: kinds.LOGITS,
    tile_peak: kinds.FLOAT32,
    tile_total: kinds.FLOAT32,
    tile_values: kinds.FLOAT32,
    tile_tokens: kinds.INT32,
    row_stride: kinds.NUMBER,
    vocabulary: kinds.NUMBER,
    top_n: kinds.NUMBER,
    TILE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    slot = row * tl.num_programs(1) + tile
    place = tile * TILE + tl.arange(0, TILE)
    x = load_row(
        logits + row * sixteenfold(row_stride, ALIGNED), place, sixteenfold(vocabulary, ALIGNED)
    )  # fmt: skip
    peak = tl.max(x, axis=0)
    # A tile of -inf alone (a grammar's mask) has no peak to subtract; its sum is 0 in any case.
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
    """For each of three keys, the number of logits at or above it, or their unnormalised probability. Lane
    sums come first, so that the order of summation is the same for all three."""
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


@kernel
def threshold(
    logits: kinds.LOGITS,
    temperature: kinds.FLOAT32,
    top_k: kinds.INT32,
    top_p: kinds.FLOAT32,
    min_p: kinds.FLOAT32,
    tile_peak: kinds.FLOAT32,
    peaks: kinds.FLOAT32,
    thresholds: kinds.INT64,
    row_stride: kinds.NUMBER,
    vocabulary: kinds.NUMBER,
    tiles: kinds.NUMBER,
    TILE: tl.constexpr,
    TILES_PADDED: tl.constexpr,
    KEY_BITS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
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
            # Among what top_k left: no key below `found` can be the answer, since `found` itself reaches the
            # target.
            whole, _, _ = weight_from(row_logits, found, found, found, peak, heat, vocabulary, TILE, True)
            found = largest_key(
                row_logits, p * whole, peak, heat, vocabulary, TILE, KEY_BITS, True
            )  # fmt: skip
        if least > 0:
            found = tl.maximum(found, order_key(peak + heat * tl.log(least)))
    tl.store(peaks + row, peak)
    tl.store(thresholds + row, found.to(tl.int64))


@kernel
def draw(
    logits: kinds.LOGITS,
    temperature: kinds.FLOAT32,
    seed: kinds.INT64,
    position: kinds.INT64,
    peaks: kinds.FLOAT32,
    thresholds: kinds.INT64,
    tile_arrival: kinds.FLOAT32,
    tile_winner: kinds.INT32,
    row_stride: kinds.NUMBER,
    vocabulary: kinds.NUMBER,
    TILE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    slot = row * tl.num_programs(1) + tile
    place = tile * TILE + tl.arange(0, TILE)
    x = load_row(
        logits + row * sixteenfold(row_stride, ALIGNED), place, sixteenfold(vocabulary, ALIGNED)
    )  # fmt: skip
    heat = tl.load(temperature + row)
    if heat >= HEAT_FROM:
        noise = noise_of_tile(tile * TILE, tl.load(seed + row), tl.load(position + row), TILE)
        peak = tl.load(peaks + row)
        kept = order_key(x) >= tl.load(thresholds + row).to(tl.uint32)
        # Relative to the peak, so that no temperature makes a score overflow; an infinite peak is not
        # subtracted from itself.
        score = tl.where(x == peak, 0.0, (x - peak) / heat)
        x = tl.where(kept, score - noise, float("-inf"))
    arrival, winner = tl.max(x, axis=0, return_indices=True)
    tl.store(tile_arrival + slot, arrival)
    tl.store(tile_winner + slot, tile * TILE + winner)


@kernel
def finish(
    logits: kinds.LOGITS,
    tile_peak: kinds.FLOAT32,
    tile_total: kinds.FLOAT32,
    tile_values: kinds.FLOAT32,
    tile_tokens: kinds.INT32,
    tile_arrival: kinds.FLOAT32,
    tile_winner: kinds.INT32,
    out_token: kinds.INT64,
    out_log_probability: kinds.FLOAT32,
    out_top_tokens: kinds.INT64,
    out_top_values: kinds.FLOAT32,
    row_stride: kinds.NUMBER,
    tiles: kinds.NUMBER,
    top_n: kinds.NUMBER,
    TILES_PADDED: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES_PADDED)
    inside = tile < tiles
    slot = row * tiles + tile

    # Of equal arrivals the lower tile wins and, within it, the lower token.
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
