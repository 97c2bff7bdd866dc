"""The runs that a user names for a plot: where their metrics are, which differ in the seed alone, and how they are called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accord.errors import UserError
from accord.io.readers import read_yaml
from accord.io.records import read_metrics
from accord.plots.charts import Curve, Rows

METRICS = "metrics.jsonl"
SEED = re.compile(r"(?i)(?<![a-z])seed[-_=]?\d+|(?<![a-z0-9])s\d+$")
"""The part of a name that says the seed: ``ppo_seed1``, ``seed=2``, ``ppo-s3``, a folder ``s0``."""


@dataclass(frozen=True, slots=True)
class Found:
    """One run: its file of metrics, and their rows."""

    path: Path
    rows: Rows


def read_runs(names: Sequence[str], logs: Path) -> list[Found]:
    """The runs of that name, each once.  Raises UserError where one is not there, or has no metrics."""
    paths = {path.resolve(): path for path in (find(name, logs) for name in names)}
    runs = [Found(path, read_metrics(path)) for path in paths.values()]
    if not any(run.rows for run in runs):
        raise UserError(f"{runs[0].path}: holds no metrics yet.")
    return runs


def find(name: str, logs: Path) -> Path:
    """The file of metrics that is meant by a file, a folder of logs or of results, or a stage's name.  Raises UserError."""
    place = Path(name)
    if place.is_file():
        return place
    if not place.exists() and place.name == name and (logs / name).is_dir():
        place = logs / name
    if not place.is_dir():
        known = [p.parent.name for p in sorted(logs.glob(f"*/{METRICS}"))]
        near = difflib.get_close_matches(name, known, 1)
        here = f"; {logs} has {', '.join(known)}" if known else f"; {logs} has no logs, name their folder with --logs"
        hint = f"; did you mean {near[0]!r}?" if near else f"{here}."
        raise UserError(f"{name}: no such file or folder, and no stage in {logs}{hint}")
    for file in (place / METRICS, place / "logs" / METRICS, _logs_of_results(place) / METRICS):
        if file.is_file():
            return file
    inside = [p.parent.name for p in sorted(place.glob(f"*/{METRICS}"))]
    if inside:
        raise UserError(f"{place}: holds the logs of several stages; name those to plot, as {place / inside[0]}.")
    raise UserError(f"{place}: no {METRICS} in it; name a stage's folder of logs or of results.")


def _logs_of_results(folder: Path) -> Path:
    """Where the logs are of the stage whose results are in a folder; the folder itself where it has no config."""
    if not (folder / "config.yaml").is_file():
        return folder
    values, _ = read_yaml(folder / "config.yaml")
    return Path(str(values.get("logs", folder))) / folder.name


# ------------------------------------------------------------------ curves
def curves_of(runs: Sequence[Found], *, each: bool) -> list[Curve]:
    """Runs as curves: those whose names differ in the seed alone become one, unless ``each`` is a curve of its own."""
    groups: dict[tuple[str, ...], list[Found]] = {}
    for run in runs:
        parts = _parts(run.path)
        groups.setdefault(parts if each else tuple(_without_seed(p) for p in parts), []).append(run)
    labels = _labels(list(groups))
    return [
        Curve(f"{label} ({len(group)} seeds)" if len(group) > 1 else label, [run.rows for run in group])
        for label, group in zip(labels, groups.values(), strict=True)
        if any(run.rows for run in group)
    ]


def _parts(path: Path) -> tuple[str, ...]:
    whole = path.absolute()
    return whole.parent.parts[1:] if path.name == METRICS else whole.with_suffix("").parts[1:]


def _without_seed(part: str) -> str:
    return re.sub(r"[-_.=]{2,}", "_", SEED.sub("", part)).strip("-_.= ") if SEED.search(part) else part


def _labels(groups: Sequence[tuple[str, ...]]) -> list[str]:
    """For each path the fewest of its last parts by which it differs from the others."""
    named = [tuple(p for p in parts if p and p != "logs") or ("run",) for parts in groups]
    for count in range(1, max(map(len, named), default=0) + 1):
        labels = ["/".join(parts[-count:]) for parts in named]
        if len(set(labels)) == len(labels):
            return labels
    return ["/".join(p for p in parts if p) for parts in groups]
