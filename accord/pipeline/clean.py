"""Finds what is under a pipeline's ``out`` and ``logs`` but belongs to none of its stages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from accord.io.atomic import leftovers
from accord.pipeline.failure import FAILED
from accord.pipeline.lock import alive, owner
from accord.pipeline.plan import PipelineConfig, Planned
from accord.pipeline.previous import PREVIOUS
from accord.pipeline.records import BEGUN, DONE
from accord.pipeline.references import references


def unreferenced(pipeline: PipelineConfig, planned: Sequence[Planned], folders: Mapping[str, Path]) -> list[Path]:
    """Folders of stages that the pipeline no longer has, their logs, results put aside, and temporary files of killed runs.

    Only folders with a stage's record count, and not those that are being written or that a config names by path.
    """
    named = [Path(value).resolve() for stage in planned for _, value in references(stage.kind, stage.config)]
    unowned: list[Path] = []
    for place in _folders(Path(pipeline.out)):
        if place.name in folders:
            if not alive(owner(place)):
                unowned += leftovers(place)
        elif _is_stage(place) and not any(path.is_relative_to(place.resolve()) for path in named):
            unowned.append(place)
    aside = Path(pipeline.out) / PREVIOUS
    unowned += [p for p in _folders(aside) if not any(path.is_relative_to(p.resolve()) for path in named)]
    old = {place.name for place in unowned}
    for place in _folders(Path(pipeline.logs)):
        if place.name in old or (place.name not in folders and not (Path(pipeline.out) / place.name).exists()):
            unowned += [place] if (place / f"{place.name}.log").exists() else []
    return unowned


def _is_stage(place: Path) -> bool:
    """Whether a stage ran in this folder and is not running now."""
    return any((place / name).exists() for name in (DONE, BEGUN, FAILED)) and not alive(owner(place))


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from sorted(p for p in parent.iterdir() if p.is_dir() and not p.is_symlink())


def size(path: Path) -> int:
    """Total size in bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file() and not f.is_symlink())


def remove(path: Path) -> None:
    """Removes a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
