"""Builds the optional compiled form of what decides: `TOKENMUX_COMPILE=1 pip install .` (docs/compiled.md).

Everything else about the package stands in pyproject.toml, also what is compiled and what is left out.
Without the variable nothing is compiled and nothing but setuptools is needed. An editable install first
removes the extension modules that an earlier one left beside the sources: they would be found before them.

    python setup.py translate     # mypyc alone, without the C compiler: would it still build?
"""

import contextlib
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LIBRARY = "tokenmux.compiled"
"""mypyc puts the code of all modules into one library, and beside each module a few lines that look it up."""


def compiled_modules() -> list[Path]:
    """The sources of the modules to compile, relative to the folder of packages (`engine`)."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["tokenmux"]["compiled"]
    left_out = {name for group in settings["left-out"] for name in group["modules"]}
    found = [
        path.relative_to(ROOT / "engine")
        for package in settings["packages"]
        for path in sorted((ROOT / "engine" / package).rglob("*.py"))
    ]
    return [
        path
        for path in found
        if path.name != "__init__.py"
        and not {path.as_posix(), *(f"{folder.as_posix()}/" for folder in path.parents)} & left_out
    ]


def translated(work: Path) -> list[Extension]:
    """The extension modules, with their code in C in the folder `work`. mypyc reads a folder that looks as
    the package does once it is installed; here its rooms lie in several folders."""
    try:
        from mypyc.build import mypycify
    except ImportError as error:
        raise SystemExit(f"the compiled form needs mypy ({error}): pip install 'mypy>=1.18'") from error
    package = work / "sources" / "tokenmux"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for path in (ROOT / "engine").iterdir():
        (package / path.name).symlink_to(path)
    with contextlib.chdir(package.parent):
        extensions: list[Extension] = mypycify(
            [
                # Types are checked elsewhere, with the settings of pyproject.toml and all dependencies.
                "--config-file=",
                "--ignore-missing-imports",
                f"--cache-dir={work / 'mypy'}",
                *(f"tokenmux/{path}" for path in compiled_modules()),
            ],
            group_name=LIBRARY,
            target_dir=str(work / "c"),
            opt_level="3",
            debug_level="0",
            # A file for each module, so that several are compiled at a time.
            multi_file=True,
        )
    for extension in extensions:
        # Since its name has a dot, the library's header lies in a folder of its own.
        extension.include_dirs.append(str(work / "c" / "tokenmux"))
    return extensions


class PureForm(build_py):
    """Copies the sources, or links them. Removes an earlier compiled form from a checkout."""

    def run(self) -> None:
        if self.editable_mode:
            for path in (ROOT / "engine").rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"):
                path.unlink()
        super().run()


class CompiledForm(build_ext):
    """Runs mypyc, then the C compiler."""

    def run(self) -> None:
        _require_compiler()
        self.distribution.ext_modules = translated(Path(self.build_temp).absolute())
        self.swig_opts = None  # It is a list by now, and would be split again.
        self.finalize_options()
        super().run()

    def get_source_files(self) -> list[str]:
        """None that belong into a source distribution: the C code is made anew each time."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Compile its files at the same time; setuptools would take one after the other."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            compiled = pool.map(lambda source: self._object_file(ext, source), ext.sources)
            ext.extra_objects = list(compiled)
        ext.sources = []
        super().build_extension(ext)

    def _object_file(self, ext: Extension, source: str) -> str:
        (name,) = self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            include_dirs=ext.include_dirs,
            extra_postargs=ext.extra_compile_args,
        )
        return str(name)


def _require_compiler() -> None:
    """Stop with the remedy if there is no C compiler, or nothing to compile against."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    header = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which(command) is None:
        missing = f"a C compiler ({command} was not found)"
    elif not header.exists():
        missing = f"the headers of Python ({header} was not found)"
    else:
        return
    raise SystemExit(
        f"TOKENMUX_COMPILE needs {missing}: install it (on Debian: apt install gcc python3-dev), or leave "
        "the variable out, which installs the same program in pure Python"
    )


def main() -> None:
    if sys.argv[1:] == ["translate"]:
        with tempfile.TemporaryDirectory() as work:
            print(f"{len(translated(Path(work)))} extension modules")
    elif os.environ.get("TOKENMUX_COMPILE", "0") in ("", "0"):
        setup(cmdclass={"build_py": PureForm})
    else:
        setup(
            cmdclass={"build_py": PureForm, "build_ext": CompiledForm},
            # Which modules there are is known once mypyc has run; that there will be some is asked before.
            ext_modules=[Extension(f"{LIBRARY}__mypyc", sources=[])],
            setup_requires=["mypy>=1.18,<3"],
        )


if __name__ == "__main__":
    main()
