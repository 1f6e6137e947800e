"""A child process that probes, converts and checks checkpoints; `tokenmux.server.children.served_catalogue`
is its other side.

A question has `root`, `block_size`, `trial_s`, `memory_bytes`, and `work`: a list of [`folder`, `gguf` or
`refresh`, name, source]. It reports progress, and each result when it is ready. A failure refuses only that
model.
"""

import os
import re
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmux.core.errors import ErrorCode, TokenmuxError
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.server.children.child_main import Reply, Tell, limit_memory, reason_of, run

NICENESS = 5
"""Serving has priority over registering."""
_NO_MEMORY = ("more memory than there is", "can't allocate memory", "bad_alloc", "Cannot allocate memory")
"""What libraries say that were refused memory. Some say something else, or nothing ("error return without
exception set"): see `_at_its_limit`."""
_LEFT_BYTES = 16 << 20
"""A process with less than this to its limit has failed for want of memory, whatever was said."""
_EVERY_S = 0.2


def handle(header: dict[str, Any], payload: bytes, report: Tell) -> Reply:
    """Do the work, one model after another."""
    memory_bytes = int(header["memory_bytes"])
    told_s = 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if done >= total or now_s - told_s > _EVERY_S:
            told_s = now_s
            report({"progress": [what, done, total]})

    catalogue = Catalogue(
        Path(header["root"]),
        block_size=int(header["block_size"]),
        trial_s=float(header["trial_s"]),
        # The model as saved, as it is computed with, and what conversion holds in between.
        told_memory=lambda n_bytes: limit_memory(memory_bytes + 3 * n_bytes),
    )
    for kind, name, source in header["work"]:
        limit_memory(memory_bytes)
        report({"progress": [f"checking {source}", 0, 0]})
        report(
            {"progress": None, "name": name, "result": _one(catalogue, kind, name, Path(source), progress)}
        )
    return {}, b""


def _one(catalogue: Catalogue, kind: str, name: str, source: Path, progress: Any) -> Mapping[str, str]:
    try:
        match kind:
            case "folder":
                catalogue.register_folder(name, source, progress=progress)
            case "gguf":
                catalogue.register_gguf(name, source, progress=progress)
            case _:
                catalogue.bring_up_to_date(name)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's file made happen is said of that file
        said = str(error) if isinstance(error, TokenmuxError) else reason_of(error)
        if isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY) or _at_its_limit():
            return {
                "error": ErrorCode.NOT_SERVABLE,
                "message": f"{source}: it takes more memory than registering may use "
                f"(`registration.memory`): {said}",
            }
        if isinstance(error, TokenmuxError):
            return {"error": error.code, "message": said}
        return {"error": ErrorCode.NOT_SERVABLE, "message": f"{source}: {said}"}
    return {}


def _at_its_limit() -> bool:
    """True if this process has nearly as much data as it may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    found = re.search(r"^VmData:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return (
        limit != resource.RLIM_INFINITY and found is not None and (int(found[1]) << 10) > limit - _LEFT_BYTES
    )


if __name__ == "__main__":
    os.nice(NICENESS)
    run(handle)
