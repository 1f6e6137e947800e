"""A child that says what is no message, or nothing and ends, as a native crash would; else repeats what it
was sent."""

import os

from tokenmux.server.children.child_main import Reply, Tell, run


def handle(header: dict[str, object], payload: bytes, report: Tell) -> Reply:
    match header.get("do"):
        case "abort":
            os.abort()
        case "rubbish":
            os.write(int(os.environ["DESCRIPTOR"]), b"\xff" * 64)
        case "memory":
            bytearray(int(str(header["bytes"])))
        case "environment":
            return {"names": sorted(os.environ)}, b""
    return header, payload


if __name__ == "__main__":
    import sys

    os.environ["DESCRIPTOR"] = sys.argv[1]
    run(handle)
