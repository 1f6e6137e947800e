"""Regenerates the Python code beside the .proto files: `python proto/generate.py`.

Needs grpcio-tools (extra `test`). The result is committed, so that an installation needs no compiler; a test holds it
against a fresh run. The import path of the generated modules equals the protobuf package (`tokenmux.v1`), which works
because protoc is run from this folder. Also adds what is new to `wire.txt`, refuses what would break clients, and writes
`docs/api.md` (`reference.py`).
"""

import argparse
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import wire
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).parent
PACKAGE = Path("tokenmux/v1")
FOREIGN = Path("inference")
"""A protocol of others, under its own package. Its messages go to ours, where nothing imports them by that name."""
TABLE = ROOT / "wire.txt"


def generate(out: Path) -> None:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` under `out / tokenmux / v1`. Raises RuntimeError if protoc fails."""
    _protoc(ROOT, [PACKAGE], f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    beside = out / PACKAGE
    _protoc(ROOT / FOREIGN, [Path()], f"--python_out={beside}", f"--pyi_out={beside}")


def described() -> list[FileDescriptorProto]:
    """The .proto files, with their comments. Raises RuntimeError if protoc fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        _protoc(ROOT, [PACKAGE, FOREIGN], "--include_source_info", f"--descriptor_set_out={out}")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def extend_table() -> None:
    """Add what is new to the table. Raises RuntimeError if something of it does not hold any longer."""
    files = described()
    table = wire.read_table(TABLE.read_text()) if TABLE.exists() else []
    wrong = wire.broken(table, files)
    if wrong:
        raise RuntimeError(
            "clients rely on these, which are gone or different (if it is gone, reserve its number):\n" + "\n".join(wrong)
        )
    TABLE.write_text(wire.show_table([*table, *wire.lines_of(files)]))


def _protoc(root: Path, folders: Sequence[Path], *options: str) -> None:
    sources = sorted(str(path.relative_to(root)) for folder in folders for path in (root / folder).glob("*.proto"))
    paths = (f"--proto_path={root}", f"--proto_path={resources.files('grpc_tools') / '_proto'}")
    status = protoc.main(["protoc", *paths, *options, *sources])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Regenerate the gRPC code from the .proto files.")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder to write to (default: in place)")
    generate(parser.parse_args().out)
    extend_table()
    import reference  # here, since it imports this module

    reference.write_page()
