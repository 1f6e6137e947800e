"""Serve many language models from a few devices. These names are for programs that talk to a server.

>>> from tokenmux import Client
>>> with Client() as client:  # doctest: +SKIP
...     print(client.generate("small", "The capital of France is").text)

They are loaded when they are first asked for, so `import tokenmux` brings neither gRPC nor torch. What
administrators use (models, pools, plans) is in `tokenmux.client`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenmux.client import (
        AsyncClient,
        AsyncStream,
        CallFailed,
        Client,
        Completion,
        Delta,
        Finish,
        GenerateOptions,
        Message,
        Phase,
        PromptInfo,
        State,
        Stream,
        WrongArgument,
    )

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "CallFailed",
    "Client",
    "Completion",
    "Delta",
    "Finish",
    "GenerateOptions",
    "Message",
    "Phase",
    "PromptInfo",
    "State",
    "Stream",
    "WrongArgument",
]


if not TYPE_CHECKING:  # Type checkers only know the names above.

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from tokenmux import client

        value: object = getattr(client, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
