"""Log-probabilities of a prompt, as the dialect shows them: before an echoed text, or in vLLM's own field."""

from collections.abc import Mapping

from tokenmux.core.sampling import LogProbabilities
from tokenmux.server.front.generation import Ask, PromptDelta
from tokenmux.server.http_api.answer_bodies import PromptLogprobsBody, PromptTokenBody
from tokenmux.server.http_api.scored_tokens import ScoredToken, TokenScorer, shown_logprob, token_name


class PromptScores:
    """What one answer shows of its prompt. `n_listed` is what `prompt_logprobs` asked for."""

    def __init__(self, ask: Ask, n_listed: int | None) -> None:
        self.listed: PromptLogprobsBody | None = None if n_listed is None else []
        """vLLM's field, if it was asked for."""
        self._n_listed = n_listed or 0
        self._n_echoed = ask.logprobs if ask.echo else None
        self._scorer = TokenScorer()

    def take(self, delta: PromptDelta) -> tuple[ScoredToken, ...]:
        """Take more of the prompt. Returns what every choice shows of it before its output."""
        if self.listed is not None:
            spellings = dict(delta.spellings)
            for token, told in zip(delta.token_ids, delta.log_probabilities, strict=True):
                self.listed.append(None if told is None else self._place(token, told, spellings))
        return () if self._n_echoed is None else self._scorer.of_prompt(delta, self._n_echoed)

    def _place(
        self, token: int, told: LogProbabilities, spellings: Mapping[int, bytes]
    ) -> dict[str, PromptTokenBody]:
        """The token first, then the likeliest ones."""
        ranks = {other: rank for rank, (other, _) in enumerate(told.likeliest, start=1)}
        pairs = dict([(token, told.drawn), *told.likeliest[: self._n_listed]])
        return {
            str(other): PromptTokenBody(
                logprob=shown_logprob(value),
                rank=ranks.get(other),
                decoded_token=token_name(spellings[other]),
            )
            for other, value in pairs.items()
        }
