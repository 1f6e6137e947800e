"""What a node tells an executor: operations to carry out, resolved to plain values, and what surrounds them.

A node's books turn handles into offsets, indices of blocks and token ids. An executor carries launches out
without knowing the books: it has no ledger, no policy and no requests. Launches on one channel are carried
out in order, one at a time.

    launches   StepLaunch, WeightsLaunch, PagingLaunch, MoveLaunch, FetchLaunch
    at once    StopStep, StopCopy, Bind, Unbind, MapImage, UnmapImage, AddModel, RemoveModel, RemoveGrammar
    answered   ReallocateArena, by `ArenaReallocated`; AddGrammar, by `GrammarReady`
"""

from typing import NewType

from msgspec import Struct

from tokenmux.core.facts import Image, ImageId, ModelFacts, ModelId
from tokenmux.core.grammar import Grammar
from tokenmux.core.sampling import PromptTelling, Sampling

OperationId = NewType("OperationId", int)
"""The ticket of a launch: its completions carry the same."""


class StepPast(Struct, frozen=True, array_like=True):
    """What a request's logit rules look at: the distinct tokens of its prompt, as far as they do, and the
    tokens drawn before."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]


class StepGrammar(Struct, frozen=True, array_like=True):
    """The grammar that a request's output obeys, which `AddGrammar` came before, and the tokens drawn
    before."""

    id: str
    output: tuple[int, ...]


class StepSegment(Struct, frozen=True, array_like=True):
    """One request's part of a step: its tokens at positions `[start, start + len(token_ids))`.

    `blocks` are the indices of its KV blocks in the arena, in units of its model's block size: enough for all
    iterations of the step. With `draws`, the token after the last one is drawn. `past` is there if the rules
    of `sampling` look at it. `telling` is what is to be told of tokens of the prompt. `grammar` is there if
    the output obeys one. `pooled` are positions of the prompt, from the first to the one after the last, of
    which the sums of hidden states are to be told.
    """

    token_ids: tuple[int, ...]
    start: int
    n_prompt: int
    blocks: tuple[int, ...]
    draws: bool
    sampling: Sampling
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    past: StepPast | None = None
    telling: PromptTelling | None = None
    grammar: StepGrammar | None = None
    pooled: tuple[int, int] | None = None


class StepLaunch(Struct, frozen=True, array_like=True, tag=True):
    """One forward pass, or `repeat` alike, of a bound model."""

    operation: OperationId
    model: ModelId
    segments: tuple[StepSegment, ...]
    repeat: int


class PlacedImage(Struct, frozen=True, array_like=True):
    """An image of weights, and its offset in the arena in bytes."""

    image: ImageId
    offset: int
    n_bytes: int


class WeightsLaunch(Struct, frozen=True, array_like=True, tag=True):
    """Copy images from host memory to their places in the arena."""

    operation: OperationId
    images: tuple[PlacedImage, ...]


class PagedBlocks(Struct, frozen=True, array_like=True):
    """KV blocks of one request: `device[i]` in the arena and `host[i]` in the memory for paged-out KV, both
    as indices in units of the model's block size."""

    model: ModelId
    device: tuple[int, ...]
    host: tuple[int, ...]


class PagingLaunch(Struct, frozen=True, array_like=True, tag=True):
    """Copy KV blocks between host memory and the arena, `into_device` or out of it."""

    operation: OperationId
    into_device: bool
    requests: tuple[PagedBlocks, ...]


class ArenaMove(Struct, frozen=True, array_like=True):
    """Move `n_bytes` from offset `source` of the arena to `target`."""

    source: int
    target: int
    n_bytes: int


class MoveLaunch(Struct, frozen=True, array_like=True, tag=True):
    """Move parts of the arena, in order. `Bind` follows for models whose weights were moved."""

    operation: OperationId
    moves: tuple[ArenaMove, ...]


class FetchLaunch(Struct, frozen=True, array_like=True, tag=True):
    """Read a model's images from its files into host memory, check them, and arrange them for the device.

    `MapImage` came before for each of them. If it fails, `UnmapImage` follows.
    """

    operation: OperationId
    model: ModelId
    images: tuple[Image, ...]


Launch = StepLaunch | WeightsLaunch | PagingLaunch | MoveLaunch | FetchLaunch


class StopStep(Struct, frozen=True, array_like=True, tag=True):
    """End the repeated step in flight after its present iteration."""

    operation: OperationId


class StopCopy(Struct, frozen=True, array_like=True, tag=True):
    """Stop this copy of weights or fetch at its next chunk. It may complete first."""

    operation: OperationId


class AddModel(Struct, frozen=True, array_like=True, tag=True):
    """A model was registered. `path` is the folder of its catalogue entry."""

    facts: ModelFacts
    path: str


class RemoveModel(Struct, frozen=True, array_like=True, tag=True):
    """Forget a model, and where it is bound. None of its weights are being copied; a last step and copies of
    KV that were launched before end as if it were there."""

    model: ModelId


class AddGrammar(Struct, frozen=True, array_like=True, tag=True):
    """Compile a grammar for a model, beside the steps of others. Answered by `GrammarReady`."""

    model: ModelId
    grammar: Grammar


class RemoveGrammar(Struct, frozen=True, array_like=True, tag=True):
    """Forget a grammar of a model. No request that is live uses it."""

    model: ModelId
    grammar_id: str


class Bind(Struct, frozen=True, array_like=True, tag=True):
    """Point the model's layers at its weights at `offset` of the arena, where they are or are just being
    copied."""

    model: ModelId
    offset: int


class Unbind(Struct, frozen=True, array_like=True, tag=True):
    """The model's weights are no longer in the arena."""

    model: ModelId


class MapImage(Struct, frozen=True, array_like=True, tag=True):
    """Map the memory of an image. Its descriptor comes with this message, and its models were added before.

    If it is `filled`, another executor of the same kind of device has fetched it; otherwise a `FetchLaunch`
    follows.
    """

    image: ImageId
    n_bytes: int
    filled: bool


class UnmapImage(Struct, frozen=True, array_like=True, tag=True):
    """Give up the mapping of an image, once no launch sent before this uses it."""

    image: ImageId


class ReallocateArena(Struct, frozen=True, array_like=True, tag=True):
    """Free the arena and allocate one of `arena_bytes`. It is empty, and nothing is in flight. All models are
    unbound."""

    arena_bytes: int


class CloseExecutor(Struct, frozen=True, array_like=True, tag=True):
    """End the process now, whatever is in flight."""


Instruction = (
    StepLaunch
    | WeightsLaunch
    | PagingLaunch
    | MoveLaunch
    | FetchLaunch
    | StopStep
    | StopCopy
    | AddModel
    | RemoveModel
    | AddGrammar
    | RemoveGrammar
    | Bind
    | Unbind
    | MapImage
    | UnmapImage
    | ReallocateArena
    | CloseExecutor
)

Instructions = tuple[Instruction, ...]
"""One message of a node: what to do, in order."""
