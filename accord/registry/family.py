"""A model's ancestors as plain records, the content of an artifact's ``lineage.json``.

An artifact includes the records of all its ancestors.  A data file has none; the ``done.json`` and ``config.yaml`` of the
stage that wrote it, in the same folder, record its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accord.config.common import Stage
from accord.errors import UserError
from accord.io.atomic import write_json
from accord.io.digests import LINEAGE, content_digest, read_manifest
from accord.io.finite_json import figures
from accord.io.hub import COMMIT
from accord.io.readers import read_json_if_present, read_yaml
from accord.io.records import Finished, check, read_record
from accord.io.records import Lineage as LineageShape

FORMAT = 1
DATA_KEYS = ("prompts", "pairs", "samples", "calibrate")
"""Config keys of data files, besides those in ``data``."""


@dataclass(frozen=True, slots=True)
class Record:
    """One model, data file or function in a lineage."""

    name: str
    kind: str  # of the stage that made it; "data", "model" or "function" for external inputs
    digest: str  # of its content; of a function, its name
    form: str = "model"  # or "data", "function"
    parents: Mapping[str, str] = field(default_factory=dict)  # config key: digest
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""


Family = dict[str, Record]  # by digest


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change results, without folders, device, intervals and the like."""
    return {key: value for key, value in settings.items() if key not in Stage.runtime}


def of_manifest(manifest: Mapping[str, Any]) -> Record:
    """The record of a model from its manifest."""
    known = {f.name for f in fields(Record)} - {"form"}
    found = {key: value for key, value in manifest.items() if key in known}
    return Record(**{"name": "?", "kind": "model", **found, "metrics": figures(found.get("metrics"))})


def ancestors(parents: Mapping[str, str], sources: Mapping[str, str]) -> Family:
    """Records of a stage's inputs and their ancestors: ``parents`` are digests by config key, ``sources`` paths by config key."""
    family: Family = {}
    for key, digest in parents.items():
        source = sources.get(key)
        if source is not None and Path(source).exists():
            family |= of_path(Path(source), digest)
        elif source is not None and (form := _form_on_hub(key, source)):
            family[digest] = Record(_without_commit(source), form, digest, form)
        elif ":" in digest:
            family[digest] = Record(digest, "function", digest, "function")
        else:
            family.setdefault(digest, Record(Path(source).name if source else "?", "model", digest))
    return family


def short(digest: str, digits: int) -> str:
    """The first digits of a digest, or of the commit that stands for the content of what is on the hub."""
    return (_commit_of(digest) or digest)[:digits]


def _commit_of(name: str) -> str:
    """The commit in a name of the hub; empty where there is none."""
    found = name.partition("@")[2].partition(":")[0]
    return found if COMMIT.fullmatch(found) else ""


def _without_commit(name: str) -> str:
    return name.replace(f"@{_commit_of(name)}", "")


def _form_on_hub(key: str, name: str) -> str:
    """What a name of the hub at a commit is, by the config key that names it: model or data; empty for what is no such
    name.
    """
    if not _commit_of(name):
        return ""
    return "data" if key.startswith("data.") or key in DATA_KEYS else "model"


def of_path(path: Path, digest: str) -> Family:
    """The record of a model folder or a data file with that digest, and those of its ancestors."""
    if path.is_dir() and (manifest := read_manifest(path)):
        above = read_lineage(path)
        own = of_manifest(manifest)
        if not above and own.parents and (stage := _stage(path.parent)):
            above = ancestors(own.parents, stage[1])  # an artifact of a version without lineage.json
            own = own if own.settings else replace(own, settings=stage[0].settings)
        return {**above, digest: own}
    form = "data" if path.is_file() and path.suffix != ".gguf" else "model"
    stage = _stage(path.parent) if form == "data" else None
    if stage is None:
        return {digest: Record(path.name, form, digest, form)}
    record, sources = stage
    own = replace(record, name=f"{record.name}/{path.name}", digest=digest, form=form)
    return {**ancestors(record.parents, sources), digest: own}


def _stage(directory: Path) -> tuple[Record, dict[str, str]] | None:
    """A finished stage's record, and the paths of those inputs whose content is unchanged."""
    try:
        done = read_record(directory / "done.json", Finished, "")
        settings = done.get("settings") or read_yaml(directory / "config.yaml")[0]
        inputs = {str(key): str(value) for key, value in done["inputs"].items()}
        kind, metrics = str(done["kind"]), figures(done["metrics"])
    except (KeyError, UserError):
        return None  # not the folder of a finished stage
    seed, versions = settings.get("seed"), dict(done.get("versions", {}))
    record = Record(directory.name, kind, "", "data", inputs, plain_settings(settings), metrics, seed, versions)
    named = done.get("sources") or {key: _value_at(settings, key) for key in inputs}
    sources = {key: value for key, value in named.items() if isinstance(value, str) and key in inputs}
    return record, {key: path for key, path in sources.items() if _has_digest(Path(path), inputs[key])}


def _has_digest(path: Path, digest: str) -> bool:
    return path.exists() and content_digest(path) == digest


def _value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        try:
            values = values[int(part)] if isinstance(values, list) else values[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return values


# ------------------------------------------------------------------ on disk
def to_json(family: Family) -> dict[str, Any]:
    """The content of ``lineage.json``."""
    return {"format": FORMAT, "records": [_plain(record) for record in family.values()]}


def _plain(record: Record) -> dict[str, Any]:
    return {key: value for key, value in asdict(record).items() if value not in ("", None, {})}


def from_json(content: Mapping[str, Any], where: str) -> Family:
    """The inverse of ``to_json``; unknown keys are ignored.  Raises UserError naming ``where``."""
    known = {f.name for f in fields(Record)}
    rows = check(content, LineageShape, where, "copy the folder again.")["records"]
    records = [Record(**{k: v for k, v in row.items() if k in known}) for row in rows]
    return {record.digest: record for record in records}


def write_lineage(folder: Path, family: Family) -> None:
    """Writes ``lineage.json``."""
    write_json(folder / LINEAGE, to_json(family))


def read_lineage(folder: Path) -> Family:
    """The records in a model folder; none where it has no ``lineage.json``.  Raises UserError where it is damaged."""
    path = folder / LINEAGE
    content = read_json_if_present(path, "copy the folder again.")
    return {} if content is None else from_json(content, str(path))
