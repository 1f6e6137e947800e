"""Health and metadata as the Open Inference Protocol asks for them, for both of its forms, gRPC and HTTP.

The protocol lets a model have versions. Models here have one, which may be left out.
"""

from dataclasses import dataclass

from tokenmux.core.errors import NotFound
from tokenmux.server.front.pool_status import installed_version
from tokenmux.server.front.service import FrontService

PLATFORM = "tokenmux"
ONLY_VERSION = "1"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the server is. It has none of the protocol's extensions."""

    name: str
    version: str


class OpenInference:
    """Answers the protocol's questions."""

    def __init__(self, front: FrontService) -> None:
        self._front = front

    @property
    def ready(self) -> bool:
        return self._front.ready

    def model_ready(self, name: str, version: str = "") -> bool:
        """True if requests for a model are accepted. Raises NotFound."""
        ready = self._front.model_ready(name)
        _check_version(name, version)
        return ready

    def server(self) -> ServerFacts:
        return ServerFacts(PLATFORM, installed_version())

    def model_name(self, name: str, version: str = "") -> str:
        """The name of a model that there is. Raises NotFound."""
        shown = self._front.show_model(name)
        _check_version(name, version)
        return shown.name


def _check_version(name: str, version: str) -> None:
    if version not in ("", ONLY_VERSION):
        raise NotFound(
            f"{name} has no version {version[:40]!r}: models here have one, {ONLY_VERSION!r}; leave it out"
        )
