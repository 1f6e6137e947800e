"""A child that has no memory left even to say which model took it."""

from tokenmux.server.children.child_main import Reply, Tell, run


def handle(header: dict[str, object], payload: bytes, report: Tell) -> Reply:
    raise MemoryError


if __name__ == "__main__":
    run(handle)
