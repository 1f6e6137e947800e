"""A child that takes its work and never says a word."""

from tokenmux.server.children.child_main import Reply, Tell, run


def handle(header: dict[str, object], payload: bytes, report: Tell) -> Reply:
    while True:
        pass


if __name__ == "__main__":
    run(handle)
