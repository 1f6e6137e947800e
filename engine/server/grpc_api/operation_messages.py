"""Operations as messages."""

from tokenmux.core.errors import TokenmuxError
from tokenmux.server.front.long_operations import OperationView
from tokenmux.server.grpc_api.status import MAX_MESSAGE_CHARS, STATUS
from tokenmux.v1 import operations_pb2


def operation_message(view: OperationView) -> operations_pb2.Operation:
    return operations_pb2.Operation(
        name=view.name,
        state=f"OPERATION_STATE_{view.state.name}",
        model=view.model,
        doing=view.doing.encode(errors="replace").decode(),
        done=view.done,
        total=view.total,
        elapsed_s=view.elapsed_s,
        error=None if view.error is None else _error(view.error),
    )


def _error(error: TokenmuxError) -> operations_pb2.OperationError:
    message = str(error)[:MAX_MESSAGE_CHARS].encode(errors="replace").decode()
    return operations_pb2.OperationError(
        code=STATUS[error.code].value[0], message=message, reason=error.code.name
    )
