"""Registration as a server does it, in real child processes: whatever is in a folder, it is registered or
refused with a reason."""

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenmux.core.errors import (
    InUse,
    NotServable,
    TokenmuxError,
    Unavailable,
    UnsupportedModel,
    WorkCancelled,
)
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.locks import Claim
from tokenmux.models.catalogue.stored_entries import StoredEntries
from tokenmux.server.children.served_catalogue import RegistrationLimits, ServedCatalogue
from tokenmux.server.front.cancellation import Cancellation

LIMITS = RegistrationLimits(memory_bytes=3 << 30, silent_s=60.0, trial_s=2.0)
Harm = Callable[[Path], None]


def quiet(what: str, done: int, total: int) -> None:
    pass


def config(**changes: object) -> Harm:
    def harm(folder: Path) -> None:
        change(folder / "config.json", lambda document: document.update(changes))

    return harm


def template(text: str) -> Harm:
    def harm(folder: Path) -> None:
        for path in folder.glob("chat_template*"):
            path.unlink()
        change(folder / "tokenizer_config.json", lambda document: document.update(chat_template=text))

    return harm


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


HARMS: dict[str, tuple[Harm, str]] = {
    "negative-context": (config(max_position_embeddings=-5), "context"),
    "no-context": (config(max_position_embeddings=0), "context"),
    "absurd-context": (config(max_position_embeddings=10**30), "context"),
    "float-context": (config(max_position_embeddings=512.5), "max_position_embeddings"),
    "null-context": (config(max_position_embeddings=None), "max_position_embeddings"),
    "no-heads": (config(num_attention_heads=0), "modulo by zero"),
    "huge-heads": (config(head_dim=8192), "huge-heads"),
    "nested": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000) and None,
        "nested too deeply",
    ),
    "no-tokenizer": (without_tokenizer, "tokenizer"),
    "pointer": (
        lambda folder: (folder / "tokenizer.json").write_text("version https://x") and None,
        "tokenizer",
    ),
    "cut-ends": (
        lambda folder: (folder / "generation_config.json").write_text("{") and None,
        "generation_config",
    ),
    "list-ends": (
        lambda folder: (folder / "generation_config.json").write_text("[]") and None,
        "generation_config",
    ),
}

TEMPLATES = {
    "endless": (
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "takes longer than 2 s",
    ),
    "divides": ("{{ 1 / 0 }}", "division by zero"),
    "recursive": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "syntax": ("{% if %}", "fails on a greeting"),
    "silent": ("hello", "leaves out what the user says"),
    "parts": ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", ""),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.create("llama", tmp_path_factory.mktemp("whole") / "llama")


def copies(whole: Path, folder: Path, name: str, harm: Harm) -> tuple[str, Path]:
    made = folder / name
    made.mkdir(parents=True)
    for path in whole.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    harm(made)
    return name, made


def test_bad_folders_are_refused_each_with_its_reason_and_the_others_are_served(
    whole: Path, tmp_path: Path
) -> None:
    sources = [copies(whole, tmp_path, name, harm) for name, (harm, _) in HARMS.items()]
    sources += [copies(whole, tmp_path, name, template(text)) for name, (text, _) in TEMPLATES.items()]
    sources += [("good", whole), ("nowhere", tmp_path / "nowhere"), ("long", tmp_path / ("x" * 5000))]
    catalogue = ServedCatalogue(tmp_path / "catalogue", LIMITS)
    refusals = catalogue.bring_in(sources, quiet)
    assert refusals.keys() == {*HARMS, "nowhere", "long"}
    for name, (_, reason) in HARMS.items():
        assert reason in str(refusals[name]), name
        assert str(tmp_path / "catalogue") not in str(refusals[name]), "the operator's file is named"
    assert catalogue.names() == sorted(name for name, _ in sources)
    for name, (_, reason) in TEMPLATES.items():
        facts = catalogue.get(name).tokenizer().facts
        assert reason in facts.template_refusal, name
        assert facts.can_chat == (not reason), name
    assert catalogue.get("good").facts.max_context == 512
    for name in HARMS:
        with pytest.raises(TokenmuxError):
            catalogue.get(name)
    assert not [path.name for path in (tmp_path / "catalogue" / "models").iterdir() if path.name[0] == "."]


ODD: tuple[object, ...] = (
    None, -1, 0, 1.5, "x", "257", True, [], [5], [[5]], {}, {"a": 1}, 10**30, 8192, float("nan"), "\0",
)  # fmt: skip


def test_any_value_anywhere_is_registered_or_refused(whole: Path, tmp_path: Path) -> None:
    """The kind behind the cases above: a value that its reader did not expect, anywhere in the text files
    of a checkpoint."""
    chance = random.Random(9)
    sources = []
    for number in range(40):
        file = chance.choice(
            [
                "config.json",
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ]
        )

        def harm(folder: Path, file: str = file) -> None:
            change(folder / file, lambda document: _replace_one(document, chance))

        sources.append(copies(whole, tmp_path, f"{number}-{file}", harm))
    catalogue = ServedCatalogue(tmp_path / "catalogue", LIMITS)
    refusals = catalogue.bring_in(sources, quiet)
    assert all(type(reason) is not TokenmuxError for reason in refusals.values())
    for name, _ in sources:
        if name not in refusals:
            entry = catalogue.get(name)
            assert entry.encoder().encode("hello")
            assert all(0 <= token < entry.facts.vocab_size for token in entry.tokenizer().stop_token_ids)
    assert len(refusals) not in (0, len(sources)), (
        "nothing was refused, or everything: the changes say nothing"
    )


def _replace_one(document: dict[str, Any], chance: random.Random) -> None:
    place: Any = document
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], (dict, list)) and place[key] and chance.random() < 0.8:
            place = place[key]
            continue
        place[key] = chance.choice(ODD)
        return


def test_two_registrations_at_the_same_moment_leave_later_ones_whole(whole: Path, tmp_path: Path) -> None:
    catalogue = ServedCatalogue(tmp_path / "catalogue", LIMITS)
    other = tiny.create("gpt2", tmp_path / "gpt2")
    together = threading.Barrier(2)
    failed: list[Exception] = []

    def register(name: str, source: Path) -> None:
        together.wait()
        try:
            catalogue.register_folder(name, source, progress=quiet)
        except Exception as error:  # noqa: BLE001 - shown below
            failed.append(error)

    threads = [threading.Thread(target=register, args=pair) for pair in (("a", whole), ("b", other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    catalogue.register_folder("alone", whole, progress=quiet)
    assert catalogue.names() == ["a", "alone", "b"]


def stand_in(name: str, tmp_path: Path, **limits: float) -> ServedCatalogue:
    return ServedCatalogue(
        tmp_path / "catalogue",
        RegistrationLimits(**limits),  # type: ignore[arg-type]
        module=f"tests.server.children.scripts.{name}",
    )


def test_a_silent_child_is_killed_and_what_it_left_behind_deleted(whole: Path, tmp_path: Path) -> None:
    catalogue = stand_in("silent", tmp_path, silent_s=0.3)
    left = tmp_path / "catalogue" / "models" / ".m.half"
    left.mkdir(parents=True)
    with pytest.raises(NotServable, match=r"no progress in .* of computing"):
        catalogue.register_folder("m", whole, progress=quiet)
    assert not left.exists()


def test_a_cancelled_registration_ends_and_what_it_left_behind_is_deleted(
    whole: Path, tmp_path: Path
) -> None:
    catalogue = stand_in("silent", tmp_path, silent_s=600.0)
    left = tmp_path / "catalogue" / "models" / ".m.half"
    left.mkdir(parents=True)
    cancellation = Cancellation()
    cancellation.ask()  # before the child begins: the one that comes while it works takes the same way
    with pytest.raises(WorkCancelled, match="registering m was cancelled"):
        catalogue.register_folder("m", whole, progress=quiet, cancellation=cancellation)
    assert not left.exists()
    assert catalogue.names() == []


def test_more_memory_than_allowed_is_a_refusal_that_names_the_limit(whole: Path, tmp_path: Path) -> None:
    limits = RegistrationLimits(memory_bytes=200 << 20, silent_s=60.0)  # less than the libraries take
    with pytest.raises(NotServable, match=r"`registration\.memory`"):
        ServedCatalogue(tmp_path / "catalogue", limits).register_folder("m", whole, progress=quiet)


def test_a_child_without_memory_to_say_so_refuses_its_model_and_no_other(whole: Path, tmp_path: Path) -> None:
    catalogue = stand_in("out_of_memory", tmp_path, silent_s=60.0)
    refused = catalogue.bring_in([("a", whole), ("b", whole)], quiet)
    for name in ("a", "b"):
        assert "it takes more memory than its process may use" in str(refused[name])
        assert "(`registration.memory`)" in str(refused[name])


def test_closing_ends_a_registration(whole: Path, tmp_path: Path) -> None:
    catalogue = stand_in("silent", tmp_path, silent_s=600.0)
    result: list[Exception] = []

    def register() -> None:
        try:
            catalogue.register_folder("m", whole, progress=quiet)
        except Exception as error:  # noqa: BLE001 - shown below
            result.append(error)

    thread = threading.Thread(target=register, daemon=True)
    thread.start()
    while not catalogue._children:
        pass
    catalogue.close()
    thread.join(20)
    assert isinstance(result[0], Unavailable)


def test_an_entry_that_another_server_uses_is_not_removed(whole: Path, tmp_path: Path) -> None:
    Catalogue(tmp_path).register_folder("m", whole)
    ours, theirs = ServedCatalogue(tmp_path), Claim(tmp_path / "models" / "m")
    ours.get("m")
    with pytest.raises(InUse, match="served by another server"):
        ours.remove("m")
    assert ours.get("m").name == "m"
    theirs.release()
    aside = ours.set_aside("m")
    assert ours.names() == []
    # As another server does that starts, or this one when a registration is killed.
    StoredEntries(tmp_path).sweep()
    aside.restore()
    assert ours.get("m").name == "m"
    ours.remove("m")
    assert ours.names() == []


def test_entries_of_an_earlier_version_are_brought_up_to_date(whole: Path, tmp_path: Path) -> None:
    entry = Catalogue(tmp_path).register_folder("m", whole)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (entry.path / name).write_bytes((whole / name).read_bytes())
    (entry.path / "entry.json").write_text('{"trust_remote_code": false}')
    (entry.path / "text.json").unlink()
    catalogue = ServedCatalogue(tmp_path, LIMITS)
    assert not catalogue.bring_in((), quiet)
    assert catalogue.get("m").facts == entry.facts
    assert catalogue.get("m").tokenizer().stop_token_ids == entry.tokenizer().stop_token_ids


def test_a_damaged_entry_is_listed_with_its_reason(whole: Path, tmp_path: Path) -> None:
    entry = Catalogue(tmp_path).register_folder("m", whole)
    change(entry.path / "entry.json", lambda document: document["facts"].update(max_context=-5))
    catalogue = ServedCatalogue(tmp_path)
    assert catalogue.names() == ["m"]
    with pytest.raises(UnsupportedModel, match="context"):
        catalogue.get("m")
