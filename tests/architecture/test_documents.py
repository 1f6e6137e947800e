"""Pages point at what is there: links, files named in text, words of the glossary, the decisions' own
list."""

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "kernels/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
OF_THEIR_DAY = ("docs/LOG.md", "docs/results", "docs/decisions", "CHANGELOG.md")
"""Pages that say what was: the files that they name may have been moved since."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
PARTS = re.DOTALL | re.MULTILINE
FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|proto))`")
SOURCES = [
    "/setup.py",
    *(
        f"/{path.relative_to(ROOT).as_posix()}"
        for top in ("engine", "kernels", "proto", "benchmarks", "tests", "examples")
        for path in (ROOT / top).rglob("*.*")
    ),
]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=PARTS)


def anchors(page: Path) -> set[str]:
    """What a link may name behind `#`, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(without_code(page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if not page.relative_to(ROOT).as_posix().startswith(OF_THEIR_DAY)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_files_that_are_named_exist(page: Path) -> None:
    """Pages may leave out the folders in front of a name, not those behind."""
    named = FILE.findall(page.read_text())
    assert [name for name in named if not any(source.endswith(f"/{name}") for source in SOURCES)] == []


def rpc_names(path: Path) -> set[str]:
    return set(re.findall(r"^ *rpc (\w+)", path.read_text(), re.MULTILINE))


CALLS = {name for path in (ROOT / "proto").rglob("*.proto") for name in rpc_names(path)}
CALL = re.compile(
    r"`(?:\w+Service\.)?((?:Get|List|Watch|Add|Remove|Load|Unload|Pin|Register|Cancel)[A-Z][a-z]+)`"
)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if not page.relative_to(ROOT).as_posix().startswith(OF_THEIR_DAY)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_calls_that_are_named_exist(page: Path) -> None:
    """What a page names like a call of the API is one."""
    assert [name for name in CALL.findall(page.read_text()) if name not in CALLS] == []


def programs() -> Iterator[tuple[str, str]]:
    """Python that readers are shown: the examples, and the ```python blocks of pages."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield path.name, path.read_text()
    for page in PAGES:
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), PARTS)):
            yield f"{page.name}-{number}", block


def has(module: ModuleType, name: str) -> bool:
    """True if the module has the name, or is a package with such a module, imported yet or not."""
    if hasattr(module, name):
        return True
    return hasattr(module, "__path__") and importlib.util.find_spec(f"{module.__name__}.{name}") is not None


@pytest.mark.parametrize("program", [pytest.param(text, id=name) for name, text in programs()])
def test_programs_that_readers_are_shown_import_what_is_there(program: str) -> None:
    """In a moment, and wherever names are changed: the examples themselves are run by tests/examples."""
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokenmux"):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not has(module, alias.name)] == [], node.module


def words_of_the_glossary() -> list[str]:
    text = (ROOT / "docs/glossary.md").read_text()
    return re.findall(r"\*\*([^*]+)\*\*(?=[: ])", text)


def test_the_glossary_has_each_word_once() -> None:
    words = [word.lower() for word in words_of_the_glossary()]
    assert len(words) > 40
    assert len(words) == len(set(words))


def test_words_of_the_glossary_are_used() -> None:
    """In the code or its comments: a word that left the code leaves the glossary too."""
    code = "\n".join(path.read_text() for path in (ROOT / "engine").rglob("*.py")).lower().replace("_", " ")
    unused = [
        word
        for word in words_of_the_glossary()
        if not re.search(rf"\b{re.escape(word.lower())}(s|es|d|ed)?\b", code)
    ]
    assert unused == []


def test_decisions_are_listed_and_have_one_form() -> None:
    folder = ROOT / "docs/decisions"
    records = sorted(folder.glob("[0-9]*.md"))
    assert [int(path.name[:3]) for path in records] == list(range(1, len(records) + 1))
    index = (folder / "README.md").read_text()
    for path in records:
        text = path.read_text()
        assert f"]({path.name})" in index, path.name
        assert text.startswith(f"# {path.name[:3]} "), path.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
            "Context",
            "Decision",
            "Rejected",
            "Consequence",
        ], path.name
        assert 15 <= len(text.splitlines()) <= 40, path.name


def test_each_experiment_is_in_the_log_once_and_on_lines_of_its_own() -> None:
    """Merges have repeated entries, and run one into another."""
    log = (ROOT / "docs" / "LOG.md").read_text()
    assert not re.findall(r"(?m)^.*\S - 20\d\d-.*$", log)
    entries = re.split(r"(?m)^(?=- 20\d\d-)", log)[1:]
    beginnings = [" ".join(entry.split())[:100] for entry in entries]
    assert len(entries) > 100
    assert not [one for one in beginnings if beginnings.count(one) > 1]


def test_what_is_missing_is_said_once() -> None:
    """In docs/status.md: a list of what is not there, kept in two places, is soon wrong in one of them."""
    for page in (ROOT / "README.md", ROOT / "docs/architecture.md"):
        assert "status.md" in page.read_text()
        assert not re.search(r"\*\*Missing|not there yet\n-", page.read_text())


def test_an_anchor_that_is_none_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `thing`, said\n[a](#one-thing-said) [b](#two) [c](gone.md) [d](https://example.org)\n"
    )
    assert list(broken_links(page)) == ["#two", "gone.md"]
