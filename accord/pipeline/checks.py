"""What can be checked of a stage before anything is read at length, and before any file is touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from accord.config.common import Stage
from accord.config.functions import is_function, load_scores
from accord.data.files.hub import is_hub_name
from accord.data.files.source import open_source
from accord.errors import UserError
from accord.pipeline.previous import PREVIOUS
from accord.pipeline.records import BEGUN, DONE, is_record, read_begun, read_done
from accord.pipeline.references import references, resolve, value_at
from accord.pipeline.task import folder, logs
from accord.stage_kinds.table import STAGE_KINDS


def check_folders(kind: str, config: Stage, inputs: Mapping[str, str]) -> None:
    """Raises UserError for a folder that cannot be written, is another kind's, is not ours, or overlaps with an input.

    ``inputs`` maps config keys to paths.
    """
    directory, log_folder = folder(config, kind), logs(config, kind)
    for place in (directory, log_folder, directory.parent / PREVIOUS):
        _require_writable(place)
    _require_outside_stages(directory)
    _require_kind(directory, kind)
    if Path(config.logs).resolve().is_relative_to(directory.resolve()):
        raise UserError(f"{directory}: the folder of all logs (logs={config.logs}) is in it; choose another name=.")
    log_names = (f"{directory.name}.log", "metrics.jsonl")
    _require_ours(directory, "out", known=any(map(is_record, _names(directory))))
    if log_folder.resolve() != directory.resolve():
        _require_ours(log_folder, "logs", known=any(name in log_names for name in _names(log_folder)))
    for key, value in inputs.items():
        if not is_function(value) and Path(value).exists():
            _require_apart(Path(value), (directory, log_folder), key)


def check_functions(kind: str, config: Stage) -> None:
    """Imports every ``module:function`` that a config names.  Raises UserError naming the setting."""
    values = config.model_dump()
    for key in STAGE_KINDS[kind].functions:
        if name := str(value_at(values, key)):
            load_scores(name, key)
    for reference, value in references(kind, config):
        if is_function(value) and not Path(value).exists():
            load_scores(value, reference.key)


def check_device(config: Stage) -> None:
    """Raises UserError where the device is not there."""
    if config.device not in ("auto", "cpu"):  # torch need not be loaded for these
        from accord.runtime.device import resolve_device

        resolve_device(config.device)


def check_rows(kind: str, config: Stage) -> None:
    """Reads every row of the data files that a config names by path, before stages run for it.  Raises UserError.

    Only that each file can be read is checked here: what a row has to hold is the stage's to check.
    """
    for reference, value in references(kind, resolve(kind, config, lambda name: None)):
        if reference.sort not in ("model", "reward") and (Path(value).exists() or is_hub_name(value)):
            for _ in open_source(value).rows:
                pass


def _require_writable(place: Path) -> None:
    """Raises UserError where the folder neither is nor can be made; makes nothing."""
    nearest = next(path for path in (place, *place.absolute().parents) if path.exists() or path.is_symlink())
    code = errno.ENOTDIR if not nearest.is_dir() else errno.EACCES
    if code == errno.ENOTDIR or not os.access(nearest, os.W_OK | os.X_OK):
        verb = "written" if nearest == place and nearest.is_dir() else "created"
        raise UserError(f"{place}: cannot be {verb} ({os.strerror(code)}); choose another with out= or logs=.")


def _require_outside_stages(directory: Path) -> None:
    """Raises UserError for a folder within that of a stage, with which it would be moved or removed."""
    for parent in directory.resolve().parents:
        if any((parent / name).is_file() for name in (DONE, BEGUN)):
            raise UserError(f"{directory}: is in the folder of the stage {parent.name}; choose another out=.")


def _require_kind(directory: Path, kind: str) -> None:
    record = read_done(directory) or read_begun(directory)
    found = record.get("kind", kind)
    if found != kind:
        raise UserError(f"{directory}: holds a stage of kind {found!r}, not {kind!r}; choose another name=.")


def _require_ours(place: Path, key: str, known: bool) -> None:
    found = _names(place)
    if found and not known:
        raise UserError(
            f"{place}: holds {_some(found)} and no record of a stage, so it is not a folder of accord; choose another"
            f" name= or {key}=, or move it away."
        )


def _require_apart(source: Path, places: Iterable[Path], key: str) -> None:
    resolved = source.resolve()
    for place in map(Path.resolve, places):
        if resolved.is_relative_to(place) or place.is_relative_to(resolved):
            raise UserError(
                f"{key}: {source} is in the folder that this stage would write ({place.name}), so it would replace its own"
                " input; choose another name=."
            )


def _names(place: Path) -> list[str]:
    """What a folder holds, without hidden files."""
    return sorted(p.name for p in place.iterdir() if not p.name.startswith(".")) if place.is_dir() else []


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
