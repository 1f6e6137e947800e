"""Results of earlier runs, one JSON document per line, oldest first: `report.finish` appends, `compare`
reads.

`finish` appends only if the variable TOKENMUX_HISTORY names a file (`make bench` names
`benchmarks/history.jsonl`), so that a run with `--quick`, or a test, does not change the checkout.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "history.jsonl"
VARIABLE = "TOKENMUX_HISTORY"
KIND = ("system", "cpu", "cores", "device", "interpreted", "threads")
"""What must be equal for two machines' numbers to be compared. Versions may differ: they are part of what
changed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of one benchmark."""

    benchmark: str
    commit: str
    date: str
    quick: bool
    """True if it measured less (`--quick`)."""
    machine: Mapping[str, object]
    metrics: Mapping[str, float]
    targets: Mapping[str, Mapping[str, object]]

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for runs that may be compared: one benchmark, at one length, on machines of one kind."""
        return (self.benchmark, self.quick, *(self.machine.get(fact) for fact in KIND))

    @property
    def names(self) -> tuple[str, ...]:
        """Its metrics, without the percentiles that belong to some of them."""
        return tuple(name for name in self.metrics if not name.endswith(("_p20", "_p80")))


def append(document: Mapping[str, object], file: Path) -> None:
    """Append the document that a benchmark printed to `file`, which is created if necessary."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(document) + "\n")


def read(file: Path) -> Iterator[Entry]:
    """Every run in `file`, oldest first. Raises ValueError with the line's number if one is malformed."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found = json.loads(line)
            yield Entry(
                found["benchmark"],
                found["commit"],
                found["date"],
                found.get("quick", False),
                found["machine"],
                found["metrics"],
                found["targets"],
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{file}:{number} is not the result of a benchmark: {error!r}") from error


def named() -> Path | None:
    """The file to which results are appended, if the environment names one."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None
