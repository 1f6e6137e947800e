"""What is shipped: a wheel is built from a copy of the sources, and everything in it can be imported."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"tokenmux": "engine", "tokenmux/kernels": "kernels", "tokenmux/v1": "proto/tokenmux/v1"}
SHIPPED = {".py", ".pyi", ".proto", ".typed"}


def test_every_package_is_listed() -> None:
    """A folder missing from pyproject.toml is missing from the wheel, and from nothing else: nobody would
    notice."""
    found = {
        ".".join((*inside.split("/"), *path.parent.relative_to(ROOT / outside).parts))
        for inside, outside in FOLDERS.items()
        for path in (ROOT / outside).rglob("*.py")
    }
    assert found == set(SETTINGS["tool"]["setuptools"]["packages"])


def test_the_folder_of_links_shows_every_room() -> None:
    """Checkers of types and imports, and machines where nothing is installed, find the package through
    `.typing`."""
    links = {
        path.name: path.resolve() for path in (ROOT / ".typing" / "tokenmux").iterdir() if path.is_symlink()
    }
    rooms = {path.name: path for path in (ROOT / "engine").iterdir() if path.name != "__pycache__"}
    assert links == rooms | {"kernels": ROOT / "kernels", "v1": ROOT / "proto" / "tokenmux" / "v1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree, built without network and without a trace in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in ("engine", "kernels", "proto"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_source_file(wheel: Path) -> None:
    expected = {
        f"{inside}/{path.relative_to(ROOT / outside)}"
        for inside, outside in FOLDERS.items()
        for path in (ROOT / outside).rglob("*")
        if path.suffix in SHIPPED or path.name == "py.typed"
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert expected - names == set()
    assert {name for name in names if name.startswith("tokenmux/")} - expected == set()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"tokenmux"}, (
        "nothing else may land in site-packages: `kernels` and `proto` are names of other packages"
    )


def test_every_package_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """In an interpreter that finds ours in the wheel only, and everything else where it is installed."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    packages = SETTINGS["tool"]["setuptools"]["packages"]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import importlib\n"
        f"for name in {packages!r}:\n"
        "    module = importlib.import_module(name)\n"
        f"    assert next(iter(module.__path__)).startswith({str(tmp_path)!r}), (name, "
        "list(module.__path__))\n"
        "import tokenmux.v1.inference_pb2, tokenmux.simulator.simulator as simulator\n"
        f"assert simulator.__file__.startswith({str(tmp_path)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_command_is_shipped(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "tokenmux = tokenmux.cli.app:main" in archive.read(name).decode()
