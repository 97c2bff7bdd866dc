"""Eight processes write at once: nothing is lost, and no writer fails because the database is locked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.errors import UserError
from accord.io.digests import verify
from accord.registry import schema
from accord.registry.manifest import publish
from accord.registry.store import Store, open_store

PROCESSES, ADDS = 8, 20


def artifact(folder: Path, name: str, content: str) -> Path:
    def write(inner: Path) -> None:
        (inner / "model.safetensors").write_text(content)

    publish(folder / "model", write, {"name": name, "kind": "sft", "metrics": {"who": 1.0}})
    return folder / "model"


def work(path: Path, number: int, errors: Any) -> None:
    """Adds to a name that all share and to one of its own, and moves aliases."""
    try:
        store = open_store(path)
        for i in range(ADDS):
            folder = artifact(path.parent / f"p{number}", "shared", f"{number} {i}")
            store.add(folder)
            if i % 5 == 0:
                mine = store.add(folder, f"own{number}")
                store.alias(mine.label, "mine")
                store.alias("shared", f"of{number}")
                store.tag(mine.label, "step", str(i))
        errors.put("")
    except BaseException as error:  # reported to the parent, which fails
        errors.put(f"{number}: {error!r}")


def started(target: Callable[..., None], *rest: Any, count: int = PROCESSES) -> list[Any]:
    context = multiprocessing.get_context("fork")
    found = [context.Process(target=target, args=(rest[0], i, *rest[1:])) for i in range(count)]
    for process in found:
        process.start()
    return found


def test_eight_writers_lose_nothing(tmp_path: Path) -> None:
    """The registry does not exist when they start: making it is a race too."""
    path = tmp_path / "registry.sqlite"
    errors = multiprocessing.get_context("fork").Queue()
    processes = started(work, path, errors)
    assert [errors.get(timeout=120) for _ in processes] == [""] * PROCESSES
    for process in processes:
        process.join()
    store = open_store(path)
    shared = store.list("shared")
    assert [v.version for v in shared] == list(range(1, PROCESSES * ADDS + 1))
    assert len({v.digest for v in shared}) == PROCESSES * ADDS
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == sorted(v.digest for v in shared)
    for number in range(PROCESSES):
        own = store.list(f"own{number}")
        assert [v.version for v in own] == [1, 2, 3, 4]
        assert [v.tags for v in own] == [{"step": str(i)} for i in (0, 5, 10, 15)]
        assert store.find(f"own{number}@mine").version == 4
        assert store.find(f"shared@of{number}").name == "shared"
    for version in shared[::20]:
        verify(version.folder)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_who_comes_late_to_make_the_registry_keeps_the_other(store: Store, make: Any) -> None:
    store.add(make(weights=1))
    schema.create(store.path)
    assert [v.label for v in store.list()] == ["sft@1"]
    assert [p.name for p in store.root.iterdir() if p.name.endswith(".tmp")] == []


def add_for_ever(path: Path, number: int) -> None:
    store = open_store(path)
    i = 0
    while True:
        store.add(artifact(path.parent / f"p{number}", "shared", f"{number} {i}"))
        i += 1


def test_writers_that_are_killed_leave_a_whole_registry(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    for _ in range(3):
        processes = started(add_for_ever, path, count=3)
        time.sleep(0.7)
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    store = open_store(path)
    shared = store.list("shared")
    assert shared, "they had time for some"
    assert [v.version for v in shared] == list(range(1, len(shared) + 1))
    for version in shared:
        verify(version.folder)
    assert store.add(artifact(tmp_path / "last", "shared", "last")).version == len(shared) + 1


def test_a_writer_that_does_not_end_is_reported_in_a_sentence(
    store: Store, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(weights=1)
    store.add(model)
    monkeypatch.setattr(schema, "WRITE_TIMEOUT", 0.1)
    other = open_store(store.path)
    with (
        schema.writing(store._engine),
        pytest.raises(
            UserError,
            match=r"another process is writing .* .database is locked.; nothing was changed",
        ),
    ):
        other.alias("sft", "good")
    assert other.find("sft").aliases == ("latest",), "reading does not wait"


def test_adding_takes_a_tenth_of_a_second(store: Store, make: Any) -> None:
    """CPU seconds, without SQLAlchemy's import: 0.1 is allowed for one."""
    store.add(make(weights=0))
    models = [make(f"m{i}", weights=i) for i in range(10)]
    started_at = time.process_time()
    for model in models:
        store.add(model)
    assert (time.process_time() - started_at) / len(models) < 0.1
