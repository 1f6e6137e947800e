"""Device code of the counter-based generator that `noise.py` defines."""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, low, high):
    """Philox4x64-10 on uint64 tensors; the key is (low, high)."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2E7470EE14C6C93), c0 * 0xD2E7470EE14C6C93
        high2, low2 = tl.umulhi(c2, 0xCA5A826395121157), c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = high2 ^ c1 ^ low, low2, high0 ^ c3 ^ high, low0
        low += 0x9E3779B97F4A7C15
        high += 0xBB67AE8584CAA73B
    return c0, c1, c2, c3


@triton.jit
def halves(word):
    """The low and the high half of a uint64."""
    return (word & 0xFFFFFFFF).to(tl.uint32), (word >> 32).to(tl.uint32)


@triton.jit
def noise_of_tile(first, seed, position, TILE: tl.constexpr):
    """log E_v of the TILE tokens from `first` (a multiple of 8) on."""
    c0 = (first // 8 + 1 + tl.arange(0, TILE // 8)).to(tl.uint64)
    zero = tl.zeros_like(c0)
    key = seed.to(tl.uint64)
    w0, w1, w2, w3 = philox(c0, zero + position.to(tl.uint64), zero, zero, key, key * 0)
    b0, b1 = halves(w0)
    b2, b3 = halves(w1)
    b4, b5 = halves(w2)
    b6, b7 = halves(w3)
    # Eight numbers per counter, token by token: b0[0] b1[0] ... b7[0] b0[1] ...
    even = tl.interleave(tl.interleave(b0, b4), tl.interleave(b2, b6))
    odd = tl.interleave(tl.interleave(b1, b5), tl.interleave(b3, b7))
    u = (tl.interleave(even, odd).to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
    u = tl.minimum(u, 1.0 - 1.0 / 16777216.0)
    # -log(1 - u) loses the digits of a small u: the series keeps them.
    exponential = tl.where(u < 1.0 / 256, u * (1.0 + u * (0.5 + u * (1.0 / 3))), -tl.log(1.0 - u))
    return tl.log(exponential)
