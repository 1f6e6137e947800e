"""What an executor tells its node: progress and completions of launches, each with the ticket of its launch.

Times are CLOCK_MONOTONIC seconds, which all processes of one machine share.
"""

from msgspec import Struct

from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import ModelId
from tokenmux.core.pooling import PooledRows
from tokenmux.core.sampling import LogProbabilities
from tokenmux.messages.launches import OperationId


class Drew(Struct, frozen=True, array_like=True, tag=True):
    """An iteration of a step, except its last one, drew these tokens: one for each segment that draws, in the
    order of the segments. `log_probabilities` is empty if none of them asks for any."""

    operation: OperationId
    at_s: float
    token_ids: tuple[int, ...]
    log_probabilities: tuple[LogProbabilities | None, ...] = ()


class StepCompleted(Struct, frozen=True, array_like=True, tag=True):
    """A step ended. Its iterations ended at `ends_s`, the last one drew `token_ids`, and the drawing segments
    with the indices `stopped` (counted among those that draw) drew a token that ends them.
    `log_probabilities` is empty if none of them asks for any. `told` has what segments asked to be told of
    their prompts: the index of the segment in the step, and the log-probabilities of its targets. `faults`
    says of drawing segments that cannot go on why. `pooled` has the sums of hidden states of segments that
    asked for them, in the order of their positions."""

    operation: OperationId
    ends_s: tuple[float, ...]
    token_ids: tuple[int, ...]
    stopped: tuple[int, ...] = ()
    log_probabilities: tuple[LogProbabilities | None, ...] = ()
    told: tuple[tuple[int, tuple[LogProbabilities, ...]], ...] = ()
    faults: tuple[tuple[int, str], ...] = ()
    pooled: tuple[tuple[int, PooledRows], ...] = ()


class CopyCompleted(Struct, frozen=True, array_like=True, tag=True):
    """A copy, a move or a fetch ended: it succeeded, was `superseded` (stopped early by `StopCopy`), or
    failed. `error` says why it failed; `code` is the error's, if known."""

    operation: OperationId
    at_s: float
    error: str = ""
    code: ErrorCode | None = None
    superseded: bool = False


class CopyProgressed(Struct, frozen=True, array_like=True, tag=True):
    """A copy or fetch has done this share (0 to 1) of its bytes. Sent a few times a second."""

    operation: OperationId
    share: float


class ArenaReallocated(Struct, frozen=True, array_like=True, tag=True):
    """Answer to `ReallocateArena`. With an `error` the arena has its old size."""

    arena_bytes: int
    error: str = ""
    code: ErrorCode | None = None


class GrammarReady(Struct, frozen=True, array_like=True, tag=True):
    """Answer to `AddGrammar`. `error` says why the grammar cannot be used, if it cannot."""

    model: ModelId
    grammar_id: str
    error: str = ""


class ExecutorReady(Struct, frozen=True, array_like=True, tag=True):
    """The device has its memory: launches are carried out from now on."""


class ExecutorAlive(Struct, frozen=True, array_like=True, tag=True):
    """The executor's loop is alive: sent once a second, also while a channel waits for a driver or a disk.

    If `silent_s` is not zero, the next action may take that long, and nothing is sent meanwhile.
    """

    silent_s: float = 0.0


class ExecutorBroken(Struct, frozen=True, array_like=True, tag=True):
    """The device cannot be used any longer. The process ends after this."""

    detail: str


ExecutorReport = (
    Drew
    | StepCompleted
    | CopyCompleted
    | CopyProgressed
    | ArenaReallocated
    | GrammarReady
    | ExecutorReady
    | ExecutorAlive
    | ExecutorBroken
)

Completions = tuple[ExecutorReport, ...]
"""One message of an executor: what happened, in order."""
