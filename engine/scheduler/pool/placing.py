"""How a request gets its instance: the policy is asked, the answer checked."""

from collections.abc import Callable

from tokenmux.core.errors import InternalError
from tokenmux.core.request import Request
from tokenmux.scheduler.policy.pool.pool_policy import PoolPolicy, PoolView, Refuse
from tokenmux.scheduler.pool.members import Members


class Placing:
    """`view` is what the policy sees, `n_tokens` gives the number of a request's tokens that need room."""

    def __init__(
        self, policy: PoolPolicy, members: Members, view: PoolView, n_tokens: Callable[[Request], int]
    ) -> None:
        self._policy = policy
        self._members = members
        self._view = view
        self._n_tokens = n_tokens

    def is_taken(self, request: Request, but: int | None = None) -> bool:
        """True if an instance other than `but` takes the request."""
        facts = self._view.facts(request.model)
        n_instances = len(self._members.instances)
        return any(self._members.takes(i, request, facts) for i in range(n_instances) if i != but)

    def place(self, request: Request) -> int | Refuse:
        """The instance for a new request, or why there is none."""
        if not self.is_taken(request):
            return Refuse(self._why_not(request))
        answer = self._policy.place(request, self._view)
        if isinstance(answer, Refuse):
            return answer
        return self._checked(answer.instance, request)

    def place_again(self, source: int, request: Request) -> int:
        """The instance for a request that was accepted before, and has left `source`. A policy that refuses
        it leaves it there."""
        answer = self._policy.place(request, self._view)
        if isinstance(answer, Refuse) or answer.instance == source:
            return source
        return self._checked(answer.instance, request)

    def _checked(self, index: int, request: Request) -> int:
        if not self._view.takes(index, request):
            raise InternalError(f"{self._policy.name} placed {request.id} on instance {index}")
        return index

    def _why_not(self, request: Request) -> str:
        facts = self._view.facts(request.model)
        if any(self._members.fits(index, request, facts) for index in self._members.present):
            return "every device that could serve this is being drained: let one serve again, or add one"
        n_tokens = self._n_tokens(request)
        return (
            f"no device has room for {n_tokens} tokens of {request.model}: ask for fewer, or add a larger one"
        )
