"""The .proto files and the programs beside them."""

import importlib
import sys
from pathlib import Path
from typing import Any

PROTO = Path(__file__).parents[2] / "proto"
PACKAGE = PROTO / "tokenmux" / "v1"


def module_of(name: str) -> Any:
    """`proto/NAME.py`, as it is imported by its neighbours."""
    sys.path.insert(0, str(PROTO))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(PROTO))
