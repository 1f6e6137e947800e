"""What is committed holds on every machine: no paths of the one it was written on, no files that a tool
left behind."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MACHINE_PATH = re.compile(
    r"(?<![\w.\-/:])/(?:root|home/\w+|Users/\w+|work|workspace|workspaces|builds|__w)/|[A-Z]:\\Users\\"
)
"""Absolute paths into somebody's home or into the usual places of a checkout."""


def committed() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_no_committed_file_names_a_path_of_this_machine() -> None:
    named = []
    for path in committed():
        if not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        lines = text.splitlines()
        here = (str(ROOT) + "/", str(Path.home()) + "/")
        named += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(lines, 1)
            if MACHINE_PATH.search(line) or any(place in line for place in here if len(place) > 2)
        ]
    assert named == []


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("open('/" + "home/ada/model')", True),
        ("cd /" + "root/x", True),
        ("https://example.org/home/ada/x", False),
        ("see ~/.cache and /etc/hosts", False),
        ("benchmarks/work/table", False),
    ],
)
def test_what_counts_as_such_a_path(line: str, is_one: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) == is_one


def test_nothing_generated_is_committed() -> None:
    left = re.compile(r"(__pycache__|\.pyc$|\.egg-info|\.so$|\.whl$|\.safetensors$|\.gguf$|/build/|/dist/)")
    assert [str(path.relative_to(ROOT)) for path in committed() if left.search(path.as_posix())] == []
