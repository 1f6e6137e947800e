"""Regenerates the Python code beside the .proto files: `python proto/generate.py`.

Needs grpcio-tools (extra `test`). The result is committed, so that an installation needs no compiler; a test holds it
against a fresh run. The import path of the generated modules equals the protobuf package (`tokenmux.v1`), which works
because protoc is run from this folder.
"""

import argparse
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
PACKAGE = Path("tokenmux/v1")


def generate(out: Path) -> None:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` under `out / tokenmux / v1`. Raises RuntimeError if protoc fails."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).glob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={resources.files('grpc_tools') / '_proto'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *sources,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Regenerate the gRPC code from the .proto files.")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder to write to (default: in place)")
    generate(parser.parse_args().out)
