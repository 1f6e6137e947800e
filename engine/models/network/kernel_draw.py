"""Draws on a device that runs Triton kernels, with the random numbers and the rules of
`tokenmux.models.sampling.draw`: for equal logits a seed gives the same tokens as on a processor.

Rows with rules are drawn apart, as float32: the others keep their dtype, and their number of kernels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tokenmux.core.sampling import LogProbabilities
from tokenmux.kernels.sample import launch as sampler
from tokenmux.kernels.sample.parameters import Sampled, SamplingRows
from tokenmux.kernels.tiles import StepTiles
from tokenmux.models.network.batch import GREEDY
from tokenmux.models.network.staging import Staging
from tokenmux.models.sampling.draw import Draw, row_changes
from tokenmux.models.sampling.logit_changes import change


def draw_rows_on_device(
    logits: torch.Tensor, draws: Sequence[Draw], tiles: StepTiles, staging: Staging
) -> list[int]:
    """Draw a token for each of the first rows of `logits` `[row, vocabulary]` on its device with the `sample`
    kernel. Sleeps until it is done."""
    ruled = [row for row, draw in enumerate(draws) if draw.sampling.rules is not None]
    if not ruled:
        return _draw(_without_forbidden(logits[: len(draws)], draws, staging), draws, tiles, staging)
    tokens = [0] * len(draws)
    plain = [row for row, draw in enumerate(draws) if draw.sampling.rules is None]
    for rows in (ruled, plain):
        if rows:
            some = [draws[row] for row in rows]
            theirs = logits[staging.upload({"rows": np.array(rows, np.int64)})["rows"]]
            ready = (
                _only_allowed(_changed(theirs, some, staging), some, staging)
                if rows is ruled
                else _without_forbidden(theirs, some, staging)
            )
            for row, token in zip(rows, _draw(ready, some, tiles, staging), strict=True):
                tokens[row] = token
    return tokens


def log_probabilities_on_device(
    logits: torch.Tensor, tokens: Sequence[int], draws: Sequence[Draw], tiles: StepTiles, staging: Staging
) -> tuple[LogProbabilities | None, ...]:
    """As `log_probabilities` on a processor. Sleeps until it is done."""
    rows = [row for row, draw in enumerate(draws) if draw.sampling.n_likeliest is not None]
    numbers = {
        "rows": np.array(rows, np.int64),
        "tokens": np.array([tokens[row] for row in rows], np.int64),
    }
    there = staging.upload(numbers)
    theirs = logits[there["rows"]]
    # The kernel subtracts the same total from all: with one more token, that of the drawn one is known too.
    top_n = max(1, *(draws[row].sampling.n_likeliest or 0 for row in rows))
    out = _sample(theirs, [Draw(GREEDY, 0)] * len(rows), top_n, tiles, staging)
    first = theirs.gather(1, out.top_tokens[:, :1])[:, 0].float()
    drawn = theirs.gather(1, there["tokens"][:, None])[:, 0].float()
    told = torch.cat(
        (drawn[:, None] - first[:, None] + out.top_log_probabilities[:, :1], out.top_log_probabilities), 1
    )
    numbers_of = staging.fetch(told.contiguous()).tolist()
    ids_of = staging.fetch(out.top_tokens.contiguous()).tolist()
    found: list[LogProbabilities | None] = [None] * len(draws)
    for row, told_of, ids in zip(rows, numbers_of, ids_of, strict=True):
        n = draws[row].sampling.n_likeliest or 0
        found[row] = LogProbabilities(told_of[0], tuple(zip(ids[:n], told_of[1:][:n], strict=True)))
    return tuple(found)


def _draw(logits: torch.Tensor, draws: Sequence[Draw], tiles: StepTiles, staging: Staging) -> list[int]:
    tokens: list[int] = staging.fetch(_sample(logits, draws, 0, tiles, staging).tokens).tolist()
    return tokens


def _sample(
    logits: torch.Tensor, draws: Sequence[Draw], top_n: int, tiles: StepTiles, staging: Staging
) -> Sampled:
    """Draw, and list the `top_n` likeliest tokens of each row."""
    n, vocabulary = logits.shape
    taken = [draw.sampling for draw in draws]
    sampling = staging.upload(
        {
            "temperature": np.array([0.0 if s.is_greedy else s.temperature for s in taken], np.float32),
            "top_k": np.array([s.top_k if 0 < s.top_k < vocabulary else vocabulary for s in taken], np.int32),
            "top_p": np.array([s.top_p for s in taken], np.float32),
            "min_p": np.array([s.min_p for s in taken], np.float32),
            "seed": np.array([s.seed % (1 << 64) for s in taken], np.uint64).view(np.int64),
            "position": np.array([draw.position for draw in draws], np.int64),
        }
    )
    out = Sampled(
        tokens=torch.empty(n, dtype=torch.int64, device=logits.device),
        log_probabilities=torch.empty(n, dtype=torch.float32, device=logits.device),
        top_tokens=torch.empty(n, top_n, dtype=torch.int64, device=logits.device),
        top_log_probabilities=torch.empty(n, top_n, dtype=torch.float32, device=logits.device),
    )
    workspace = sampler.SampleWorkspace.allocate(n, vocabulary, top_n, tiles.sample, str(logits.device))
    sampler.sample(logits, SamplingRows(**sampling), out, workspace, tile=tiles.sample)
    return out


def _without_forbidden(logits: torch.Tensor, draws: Sequence[Draw], staging: Staging) -> torch.Tensor:
    """`logits`, with -inf for the forbidden tokens of each row, and for those that are not allowed; a copy if
    there are any."""
    logits = _only_allowed(logits, draws, staging)
    n_tokens = logits.shape[-1]
    banned = [(row, t) for row, draw in enumerate(draws) for t in draw.forbidden if 0 <= t < n_tokens]
    if not banned:
        return logits
    logits = logits.clone()
    places = staging.upload({"places": np.array(banned, np.int64).T.copy()})["places"]
    # Filled on the device: `new_tensor` would copy from the host, and wait for it.
    logits.index_put_((places[0], places[1]), logits.new_full((), -torch.inf))
    return logits


def _only_allowed(logits: torch.Tensor, draws: Sequence[Draw], staging: Staging) -> torch.Tensor:
    """`logits`, with -inf for the tokens that are not allowed in a row; a copy if there are any."""
    masks = [(row, draw.allowed) for row, draw in enumerate(draws) if draw.allowed is not None]
    if not masks:
        return logits
    there = staging.upload(
        {
            "rows": np.array([row for row, _ in masks], np.int64),
            "bits": np.stack([allowed for _, allowed in masks]),
        }
    )
    bits = there["bits"][:, :, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)
    is_allowed = (bits & 1).bool().flatten(1)[:, : logits.shape[-1]]
    masked = logits[there["rows"]].masked_fill(~is_allowed, -torch.inf)
    return logits.index_copy(0, there["rows"], masked)


def _changed(logits: torch.Tensor, draws: Sequence[Draw], staging: Staging) -> torch.Tensor:
    """`logits`, a copy of some rows, as float32 and changed by the rules of each row."""
    rows = logits.float()
    changes = [row_changes(draw, logits.shape[-1]) for draw in draws]
    owners = np.repeat(np.arange(len(draws), dtype=np.int64), [len(one.tokens) for one in changes])
    if not len(owners):
        return rows
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "rows": owners,
        "tokens": np.concatenate([one.tokens for one in changes]),
        "added": np.concatenate([one.added for one in changes]),
        "penalty": np.concatenate([one.penalty for one in changes]),
        "subtracted": np.concatenate([one.subtracted for one in changes]),
    }
    there = staging.upload(arrays)
    places = there["rows"], there["tokens"]
    new = change(rows[places], there["added"], there["penalty"], there["subtracted"])
    rows.index_put_(places, new)
    return rows
