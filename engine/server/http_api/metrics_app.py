"""The application at an address for metrics: `/metrics`, and nothing of the dialect."""

from starlette.applications import Starlette
from starlette.routing import Route

from tokenmux.server.front.api_keys import Scope
from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.answering import Answering, refused_paths
from tokenmux.server.http_api.metrics_path import METRICS, MetricsPath


def metrics_app(front: FrontService) -> Starlette:
    """The figures of `front`."""
    path = Answering(MetricsPath(front), front, needs=Scope.METRICS)
    return Starlette(
        routes=[Route(METRICS, path, methods=["GET"])],
        exception_handlers=refused_paths(f"there is no such path: {METRICS} is the only one here"),
    )
