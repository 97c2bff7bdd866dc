"""Names, versions, aliases: what a reference finds, what is kept, what is refused."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from accord.errors import UserError
from accord.io.digests import content_digest, verify
from accord.registry import artifact_files
from accord.registry.store import Store, open_store


# ------------------------------------------------------------------ versions
def test_a_version_is_a_name_and_a_content(store: Store, make: Any) -> None:
    first = store.add(make(weights=1))
    assert (first.label, first.kind, first.seed, first.metrics, first.aliases) == (
        "sft@1",
        "sft",
        0,
        {"nll": 2.0},
        ("latest",),
    )
    assert first.settings == {"training": {"learning_rate": 1e-3}}
    assert store.add(make(weights=2)).label == "sft@2"
    assert store.add(make("other", weights=2)).label == "other@1"
    assert [v.label for v in store.list()] == ["other@1", "sft@1", "sft@2"]
    assert [v.label for v in store.list("sft")] == ["sft@1", "sft@2"]
    assert [v.label for v in store.list(kind="ppo")] == []


def test_the_same_again_is_the_same_version_with_figures_of_today(store: Store, make: Any) -> None:
    store.add(make(weights=1))
    store.add(make(weights=2))
    again = store.add(make(weights=1, metrics={"nll": 9.0}))
    assert (again.version, again.metrics) == (1, {"nll": 9.0})
    assert len(store.list()) == 2
    assert store.find("sft").version == 1, "latest is the one added last"
    assert store.find("sft@latest").version == 1


def test_a_number_is_never_given_twice(store: Store, make: Any) -> None:
    store.add(make(weights=1))
    store.add(make(weights=2))
    store.remove("sft@2")
    assert store.find("sft").version == 1
    assert store.add(make(weights=3)).version == 3
    for label in ("sft@1", "sft@3"):
        store.remove(label)
    with pytest.raises(UserError, match="no model of this name"):
        store.find("sft")
    assert store.add(make(weights=2)).version == 4


def test_an_older_version_survives_its_stage(store: Store, make: Any) -> None:
    model = make(weights=1)
    old = store.add(model)
    before = (model / "model.safetensors").stat().st_ino
    assert (old.folder / "model.safetensors").stat().st_ino == before, "linked, not copied"
    store.add(make(weights=2))
    verify(old.folder)
    assert content_digest(old.folder) == old.digest
    shutil.rmtree(model)
    verify(store.find("sft@1").folder)
    verify(store.find("sft@2").folder)


def test_where_links_are_refused_files_are_copied(store: Store, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(weights=1)
    monkeypatch.setattr(
        artifact_files.os, "link", lambda *a, **k: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link"))
    )
    found = store.add(model)
    assert (found.folder / "model.safetensors").stat().st_ino != (model / "model.safetensors").stat().st_ino
    verify(found.folder)


def test_a_folder_that_lost_a_file_is_filled_again(store: Store, make: Any) -> None:
    model = make(weights=1)
    found = store.add(model)
    (found.folder / "config.json").unlink()
    again = store.add(model)
    verify(again.folder)
    assert again.folder == found.folder
    assert (again.folder / "config.json").read_bytes() == (model / "config.json").read_bytes()


def test_a_folder_whose_bytes_changed_is_filled_again(store: Store, make: Any) -> None:
    """As many bytes as before, so that only reading them shows the change."""
    model = make(weights=1)
    found = store.add(model)
    weights = found.folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()  # a file of its own: the stage's stays as it is
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="changed since it was written"):
        verify(found.folder)
    verify(store.add(model).folder)


def test_a_moved_project_keeps_working(store: Store, make: Any, tmp_path: Path) -> None:
    store.add(make(weights=1))
    (tmp_path / "project").rename(tmp_path / "elsewhere")
    moved = open_store(tmp_path / "elsewhere" / "registry.sqlite").find("sft")
    verify(moved.folder)
    assert moved.folder.is_relative_to(tmp_path / "elsewhere")


def test_the_registry_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCORD_REGISTRY", "shared/r.sqlite")
    assert open_store().path == Path("shared/r.sqlite")
    monkeypatch.delenv("ACCORD_REGISTRY")
    assert open_store().path == Path("checkpoints/registry.sqlite")
    assert open_store().list() == []
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


def test_only_artifacts_are_added(store: Store, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"no manifest.json"):
        store.add(tmp_path / "bare")
    (tmp_path / "bare" / "manifest.json").write_text('{"digest": "../../outside", "name": "x"}')
    with pytest.raises(UserError, match="digest: expected text of the form"):
        store.add(tmp_path / "bare")
    assert not store.path.exists()


@pytest.mark.parametrize("name", ["a b", "a@b", "a/b", ""])
def test_names_that_a_reference_could_not_name(store: Store, make: Any, name: str) -> None:
    model = make()
    if name:
        with pytest.raises(UserError, match="has no spaces"):
            store.add(model, name)
    with pytest.raises(UserError, match="has no spaces"):
        store.alias("sft", name)


# ------------------------------------------------------------------ references
def test_a_reference_finds_a_version_alias_or_digest(store: Store, make: Any) -> None:
    one, two = store.add(make(weights=1)), store.add(make(weights=2))
    store.alias("sft@1", "good")
    found = {
        text: store.find(text).version
        for text in ("sft", "sft@latest", "sft@1", "sft@2", "sft@good", two.digest[:6], one.digest)
    }
    assert found == {"sft": 2, "sft@latest": 2, "sft@1": 1, "sft@2": 2, "sft@good": 1, two.digest[:6]: 2, one.digest: 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stf", "did you mean sft?"),
        ("stf@good", "did you mean sft@good?"),
        ("sft@goof", "did you mean sft@good?"),
        ("sft@9", "sft has 1, good, latest"),
        ("nothing like it", "there are other, sft"),
        ("abcde", "no model of this name"),
    ],
)
def test_a_reference_that_finds_nothing(store: Store, make: Any, text: str, words: str) -> None:
    store.add(make(weights=1))
    store.add(make("other", weights=2))
    store.alias("sft", "good")
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        store.find(text)


def test_a_digest_that_two_have_is_one_model_and_a_prefix_of_two_is_refused(store: Store, make: Any) -> None:
    shared = store.add(make(weights=1))
    store.add(make("twin", weights=1))
    assert store.find(shared.digest[:8]).digest == shared.digest
    for i, digest in enumerate(("abcdef00" * 4, "abcdef11" * 4)):
        folder = make(f"forged{i}", weights=3 + i)
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace(content_digest(folder), digest))
        store.add(folder)
    with pytest.raises(UserError, match="give more digits"):
        store.find("abcdef")


# ------------------------------------------------------------------ aliases and tags
def test_an_alias_names_one_version(store: Store, make: Any) -> None:
    for weights in (1, 2, 3):
        store.add(make(weights=weights))
    assert store.alias("sft@1", "mine")[1] is None
    found, former = store.alias("sft@2", "mine")
    assert (found.version, former.version if former else None) == (2, 1)
    assert store.alias("sft@mine", "mine")[1] is None, "it had it already"
    assert [v.aliases for v in store.list()] == [(), ("mine",), ("latest",)]
    store.unalias("sft", "mine")
    with pytest.raises(UserError, match="no such version or alias"):
        store.find("sft@mine")
    with pytest.raises(UserError, match="not an alias that can be removed"):
        store.unalias("sft", "latest")


def test_aliases_of_two_names_do_not_meet(store: Store, make: Any) -> None:
    store.add(make(weights=1))
    store.add(make("other", weights=1))
    store.alias("sft", "good")
    assert store.alias("other", "good")[1] is None
    assert store.find("sft@good").name == "sft"


@pytest.mark.parametrize("alias", ["latest", "3"])
def test_aliases_that_mean_something_else(store: Store, make: Any, alias: str) -> None:
    store.add(make())
    for act in (store.alias, store.promote):
        with pytest.raises(UserError, match="numbers are versions"):
            act("sft", alias)


def test_promoting_keeps_the_previous_version(store: Store, make: Any) -> None:
    for weights in (1, 2):
        store.add(make(weights=weights))
    assert store.promote("sft@1")[1] is None
    store.promote("sft@2")
    assert (store.find("sft@champion").version, store.find("sft@previous").version) == (2, 1)
    store.promote("sft@previous")
    assert (store.find("sft@champion").version, store.find("sft@previous").version) == (1, 2)


def test_tags_are_set_replaced_and_removed(store: Store, make: Any) -> None:
    store.add(make())
    store.tag("sft", "good")
    assert store.tag("sft", "who", "me").tags == {"good": "", "who": "me"}
    assert store.tag("sft", "who", "you").tags == {"good": "", "who": "you"}
    assert store.tag("sft", "good", None).tags == {"who": "you"}


# ------------------------------------------------------------------ removing
def test_ancestors_of_other_models_are_not_removed(store: Store, make: Any) -> None:
    base = store.add(make("base", weights=1, kind="base"))
    store.add(make("sft", weights=2, parents={"model.base_model": base.digest}))
    with pytest.raises(UserError, match=r"were made from it .sft@1"):
        store.remove("base")
    store.alias("sft", "good")
    with pytest.raises(UserError, match="has the alias good"):
        store.remove("sft")
    assert len(store.list()) == 2
    assert base.folder.exists()
    store.remove("base", force=True)
    assert not base.folder.exists()
    store.remove("sft", force=True)
    assert store.list() == []
    assert os.listdir(store.root / "models") == []


def test_files_that_two_names_share_stay_with_the_other(store: Store, make: Any) -> None:
    one, two = store.add(make("one", weights=1)), store.add(make("two", weights=1))
    assert one.folder == two.folder
    store.remove("one")
    verify(two.folder)
    store.remove("two")
    assert not two.folder.exists()


def test_a_failure_within_changes_nothing(store: Store, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(make(weights=1))

    def full(aside: Path, final: Path) -> None:
        raise OSError(28, "No space left on device", str(final))

    monkeypatch.setattr(artifact_files, "place", full)
    with pytest.raises(UserError, match="No space left"):
        store.add(make(weights=2))
    monkeypatch.undo()
    assert [v.label for v in store.list()] == ["sft@1"]
    assert len(os.listdir(store.root / "models")) == 1, "nothing half-made stays"
    assert store.add(make(weights=2)).version == 2


def test_leftovers_of_a_killed_process_are_removed(store: Store, make: Any) -> None:
    store.add(make(weights=1))
    for name, age in ((".old.tmp", 9000), (".young.tmp", 60)):
        (store.root / "models" / name).mkdir()
        os.utime(store.root / "models" / name, (time.time() - age, time.time() - age))
    store.add(make(weights=2))
    assert [p.name for p in (store.root / "models").glob(".*")] == [".young.tmp"]


def test_an_empty_registry_says_so(store: Store) -> None:
    for act in (store.find, store.remove, store.promote):
        with pytest.raises(UserError, match="no model in the registry yet"):
            act("sft")


# ------------------------------------------------------------------ damaged rows
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("metrics", "{", "its metrics: not valid JSON"),
        ("metrics", '{"nll": "low"}', "metrics.nll: expected a valid number, found 'low'"),
        ("settings", b"\xff", "its settings: is not text"),
        ("settings", "[" * 100_000, "its settings: nested too deeply"),
        ("lineage", '{"records": [{"name": 1}]}', "its lineage: records.0.name: expected a valid string"),
        ("digest", "../x", "digest: expected text of the form"),
        ("seed", "x", "seed: expected a valid integer"),
    ],
)
def test_a_damaged_row_is_named_hides_no_other_and_can_be_removed(
    store: Store, make: Any, column: str, value: object, said: str
) -> None:
    store.add(make("good", weights=1))
    folder = store.add(make("bad", weights=2)).folder
    with closing(sqlite3.connect(store.path)) as database, database:
        database.execute(f"UPDATE models SET {column} = ? WHERE name = 'bad'", (value,))
    assert [(v.label, bool(v.damage)) for v in store.list()] == [("bad@1", True), ("good@1", False)]
    with pytest.raises(UserError, match=f"bad@1: {said}"):
        store.find("bad")
    assert store.lineage(store.find("good"))
    assert store.remove("bad@1", force=True).damage
    assert folder.exists()  # which folder is this row's is not certain
    assert [v.label for v in store.list()] == ["good@1"]


def test_removing_a_version_touches_no_folder_outside_the_registry(store: Store, make: Any, tmp_path: Path) -> None:
    store.add(make(weights=1))
    outside = tmp_path / "outside"
    outside.mkdir()
    with closing(sqlite3.connect(store.path)) as database, database:
        database.execute("UPDATE models SET folder = '../outside'")
    store.remove("sft")
    assert outside.exists()
