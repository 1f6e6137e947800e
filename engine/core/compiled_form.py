"""Which form of the package is installed: Python as it is written, or what mypyc made of it."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec


def is_compiled() -> bool:
    """True if what decides is compiled (docs/compiled.md)."""
    spec = find_spec("tokenmux.core.plan")
    return spec is not None and (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES))
