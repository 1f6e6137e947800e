"""The arguments of benchmarks that serve the demo's model."""

import argparse
from pathlib import Path


def read_arguments(about: str | None, quick: str) -> argparse.Namespace:
    """`quick`, and `cache` (a folder); `about` says what the program measures, `quick` what it leaves out."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "tokenmux",
        help="where the model is kept (default: %(default)s)",
    )
    return parser.parse_args()
