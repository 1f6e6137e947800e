"""Device code of the counter-based generator; what it must yield is written in `reference.py`."""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, low, high):
    """Philox4x32-10 on uint32 tensors; the key is (low, high)."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high2, low2 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high2 ^ c1 ^ low, low2, high0 ^ c3 ^ high, low0
        low += 0x9E3779B9
        high += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def log_exponentials(first, seed, position, TILE: tl.constexpr):
    """log E_v of the TILE tokens from `first` (a multiple of 4) on."""
    c0 = (first // 4 + tl.arange(0, TILE // 4)).to(tl.uint32)
    zero = tl.zeros_like(c0)
    c1 = zero + (position & 0xFFFFFFFF).to(tl.uint32)
    c2 = zero + (position >> 32 & 0xFFFFFFFF).to(tl.uint32)
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = (seed >> 32 & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, c2, zero, low, high)
    # Four words to a counter, token by token: w0[0] w1[0] w2[0] w3[0] w0[1] ...
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    u = tl.minimum((words.to(tl.float32) + 0.5) * (1.0 / 4294967296.0), 1.0 - 1.0 / 16777216.0)
    # -log(1 - u) loses the digits of a small u to the 1: its series keeps them.
    exponential = tl.where(u < 1.0 / 256, u * (1.0 + u * (0.5 + u * (1.0 / 3))), -tl.log(1.0 - u))
    return tl.log(exponential)
