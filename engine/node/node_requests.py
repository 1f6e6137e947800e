"""The live requests of a node, from `Submit` to `Finished`.

Submit ──▶ contents, pool ──▶ steps ──▶ PromptTold, PromptPooled, Tokens ──▶ Finished
"""

from collections.abc import Callable, Container

from tokenmux.core.clock import Clock
from tokenmux.core.effects import RequestEnded
from tokenmux.core.errors import ErrorCode
from tokenmux.core.event import Arrived
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import Step
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Finished, PromptPooled, PromptTold, Report, Tokens
from tokenmux.messages.setups import NodeSetup
from tokenmux.node.accusations import Accusations
from tokenmux.node.given_prompts import GivenPrompts
from tokenmux.node.grammars import Grammars
from tokenmux.node.node_device import Drawn, PooledOfPrompts, ToldOfPrompts
from tokenmux.node.prompt_prefixes import PromptPrefixes
from tokenmux.node.request_content import Content
from tokenmux.scheduler.policy.pool.pool_policy import Refuse
from tokenmux.scheduler.pool.pool import Pool


class NodeRequests:
    """Keeps `contents`, which others read, and says what the front is told of requests."""

    def __init__(
        self,
        contents: dict[RequestId, Content],
        models: Container[ModelId],
        pool: Pool,
        accusations: Accusations,
        grammars: Grammars,
        setup: NodeSetup,
        clock: Clock,
        say: Callable[[Report], None],
    ) -> None:
        self.given_prompts = GivenPrompts()
        self._contents = contents
        self._models = models
        self._pool = pool
        self._accusations = accusations
        self._grammars = grammars
        self._prefixes = PromptPrefixes(setup)
        self._clock = clock
        self._say = say

    def submit(self, submit: Submit) -> None:
        """Take a request in, or refuse it."""
        request, now_s = submit.request, self._clock.now_s()
        detail = ""
        code: ErrorCode | None = None
        if request.model not in self._models:
            # The front checks this; only a removal at the same time gets here.
            detail = f"model {request.model} is no longer registered"
        elif request.model in self._accusations.refused:
            detail, code = self._accusations.refused[request.model], ErrorCode.NOT_SERVABLE
        else:
            self._contents[request.id] = Content.of(submit)
            request = self._prefixes.request_of(submit)
            self.given_prompts.arrived(request)
            is_held = submit.grammar is not None  # until `Grammars` has seen where it is placed
            arrived = Arrived(
                now_s, request, len(submit.delivered), history=submit.history, is_paused=is_held
            )
            answer = self._pool.submit(arrived)
            if isinstance(answer, Refuse):
                del self._contents[request.id]
                self.given_prompts.taken(request.id, request.n_prompt)
                detail, code = answer.reason, ErrorCode.DOES_NOT_FIT
        if detail:
            self._say(Finished(request.id, FinishReason.FAILED, now_s, detail, code))

    def step_began(self, step: Step) -> None:
        self.given_prompts.started(step)

    def told(self, told: ToldOfPrompts) -> None:
        """A step told log-probabilities of prompts."""
        for request_id, start, log_probabilities in told:
            content = self._contents.get(request_id)
            if content is not None:
                index = max(start + 1, content.n_told)
                content.n_told = index + len(log_probabilities)
                self._say(PromptTold(request_id, index, log_probabilities))

    def pooled(self, pooled: PooledOfPrompts) -> None:
        """A step told sums of hidden states of prompts."""
        for request_id, rows in pooled:
            content = self._contents.get(request_id)
            if content is not None:
                content.n_pooled = rows.first + rows.n
                self._say(PromptPooled(request_id, rows))

    def drew(self, drawn: Drawn, at_s: float) -> None:
        """An iteration of a step drew tokens. Requests that have left, or are about to, get none."""
        for request_id, token, told in drawn:
            content = self._contents.get(request_id)
            place = self._pool.index_of(request_id)
            if content is None or place is None:
                continue
            to_end = self._pool.instances[place].requests[request_id].to_end
            if to_end is not None and to_end[0] is not None:
                continue
            n_prompt = content.submit.request.n_prompt
            index, n_cached = (
                len(content.token_ids) - n_prompt,
                self.given_prompts.taken(request_id, n_prompt),
            )
            content.token_ids.append(token)
            logprobs = () if told is None else (told,)
            self._say(Tokens(request_id, index, (token,), at_s, logprobs, n_cached))
            self._accusations.drew(request_id)

    def ended(self, ended: RequestEnded, load_code: ErrorCode | None) -> None:
        """A request ended. `load_code` is the kind of error with which the load failed that it waited for, if
        one did."""
        record, request = ended.record, ended.record.request
        del self._contents[request.id]
        self._grammars.ended(request.id)
        n_cached = self.given_prompts.taken(request.id, request.n_prompt)
        detail = self._accusations.ended(request.id, ended.detail)
        code = load_code if record.reason is FinishReason.FAILED else None
        self._say(Finished(request.id, record.reason, record.end_s, detail, code, n_cached))
