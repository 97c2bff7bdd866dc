"""Results that another run replaced: ``<out>/.previous/<name>-<key>`` holds a stage's whole folder, with its logs in ``logs/``.

A stage's folder moves there before a run of other settings writes in its place, and back when its key is wanted again.
Every move is a rename, so that a kill leaves the folder in one of the two places.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from accord.io.atomic import move_folder, set_aside
from accord.pipeline.lock import LOCK
from accord.pipeline.records import DONE, has_state, is_record, missing_outputs, read_begun, read_done
from accord.pipeline.task import Task, logs

PREVIOUS = ".previous"
LOGS = "logs"


def place_of(directory: Path, key: str) -> Path:
    """Where a stage's folder with this key is put."""
    return directory.parent / PREVIOUS / f"{directory.name}-{key}"


def finished(task: Task) -> bool:
    """Whether a finished run with the task's key, and all its outputs, was put aside."""
    place = place_of(task.directory, task.key)
    return _is_complete(place) and read_done(place).get("key") == task.key


def interrupted(task: Task) -> bool:
    """Whether an unfinished run with the task's key and a saved state was put aside."""
    place = place_of(task.directory, task.key)
    return has_state(place) and read_begun(place).get("key") == task.key


def is_worth_keeping(directory: Path) -> bool:
    """Whether a folder holds a finished stage, a state to resume from, or other files that are no records."""
    return (directory / DONE).exists() or has_state(directory) or bool(_others(directory, ()))


def put_aside(task: Task) -> Path:
    """Moves a stage's folder and its logs to ``.previous``; returns the place.

    Of two with one key a finished one stays, else one with a state, else the later one.

    The caller holds the folder's lock, which ends with the move.
    """
    directory, log_folder = task.directory, logs(task.config, task.kind)
    place = _free_place(directory)
    if log_folder.is_dir() and log_folder.resolve() != directory.resolve():
        _discard(directory / LOGS)
        move_folder(log_folder, directory / LOGS)
    if _progress(place) > _progress(directory):
        _discard(directory)
        return place
    _discard(place)
    try:
        move_folder(directory, place)
    except OSError:
        restore_logs(task)
        raise
    (place / LOCK).unlink(missing_ok=True)
    return place


def take_back(task: Task, place: Path) -> None:
    """Moves a folder that was put aside in the place of the task's, which holds nothing that is worth keeping.

    The caller has the lock of the task's folder.
    """
    _discard(task.directory)
    move_folder(place, task.directory)
    restore_logs(task)


def restore_logs(task: Task) -> None:
    """Moves the logs out of a stage's folder to where they belong, also after a kill between two moves."""
    held, log_folder = task.directory / LOGS, logs(task.config, task.kind)
    if held.is_dir() and not (log_folder / f"{task.directory.name}.log").exists():
        _discard(log_folder)
        move_folder(held, log_folder)


def drop(task: Task) -> None:
    """Removes what was put aside with the task's key, now that the stage is finished with it once more.

    A folder with files that its record does not list is kept: somebody else put them there.
    """
    place = place_of(task.directory, task.key)
    if not place.is_dir():
        return
    if not (place / DONE).exists() or not _others(place, {LOGS, *read_done(place).get("outputs", ())}):
        _discard(place)


def _others(directory: Path, known: Collection[str]) -> list[str]:
    """What a folder holds besides records, hidden files and ``known``."""
    names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
    return [name for name in names if not (name in known or name.startswith(".") or is_record(name))]


def _progress(directory: Path) -> int:
    """2 for a finished stage, 1 for a state to resume from, 0 for less."""
    return 2 if _is_complete(directory) else int(has_state(directory))


def _is_complete(directory: Path) -> bool:
    done = read_done(directory)
    return bool(done) and not missing_outputs(directory, done)


def _free_place(directory: Path) -> Path:
    """The place for a folder by the key in its record; without a readable one, a place that is not taken."""
    record: Mapping[str, Any] = read_done(directory) or read_begun(directory)
    key = str(record.get("key", ""))
    if re.fullmatch(r"[0-9a-f]{1,64}", key):
        return place_of(directory, key)
    number = 1
    while place_of(directory, f"unknown-{number}").exists():
        number += 1
    return place_of(directory, f"unknown-{number}")


def _discard(folder: Path) -> None:
    """Removes a folder; a kill in between leaves no half of it under its name."""
    if folder.is_dir():
        shutil.rmtree(set_aside(folder), ignore_errors=True)
