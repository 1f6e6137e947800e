"""The queue of requests that have not run yet on an instance."""

from collections.abc import Iterator

from tokenmux.core.request import RequestId
from tokenmux.scheduler.instance.request_state import RequestState


class Queue:
    """Requests in order of arrival. `version` changes whenever one enters or leaves."""

    def __init__(self) -> None:
        self.version = 0
        self._requests: dict[RequestId, RequestState] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._requests.values())

    def join(self, request: RequestState) -> None:
        request.told_position = len(self._requests)
        self._requests[request.id] = request
        self.version += 1

    def leave(self, request: RequestState) -> None:
        """Remove a request; no effect if it has left already."""
        if self._requests.pop(request.id, None) is not None:
            request.told_position = 0
            self.version += 1
