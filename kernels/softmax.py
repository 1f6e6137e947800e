"""Device code that both attention kernels share: logits and softmax in base 2.

The hardware has `exp2`, not `exp`, so logits are scaled by log2(e) once and stay in base 2 from then on.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def base2_logits(product, scale, softcap, SOFTCAP: tl.constexpr):
    """Products of query and key, as logits in base 2; with SOFTCAP, bent to `softcap * tanh(x / softcap)`."""
    if SOFTCAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1): exact at both ends, where exp2 gives 0 or infinity.
        doubled = tl.exp2(product * (2.0 * scale / softcap * LOG2_E))
        return softcap * LOG2_E * (1.0 - 2.0 / (doubled + 1.0))
    else:
        return product * (scale * LOG2_E)
