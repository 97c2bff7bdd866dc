"""Compares two versions: settings, data, metrics, and distance of the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import UserError
from accord.io.finite_json import dumps, shown
from accord.models.hf_format import checked_tensors
from accord.registry.family import Family, short
from accord.registry.lineage import flat
from accord.registry.store import Store, Version


@dataclass(frozen=True, slots=True)
class Difference:
    """Differences between two versions; missing values are empty."""

    settings: dict[str, tuple[str, str]]
    data: dict[str, tuple[str, str]]
    metrics: dict[str, tuple[str, str]]
    weights: dict[str, float]  # layer group: ||a - b|| / ||a||
    unlike: tuple[str, ...]  # tensors that are missing in one, or differ in shape


def difference(store: Store, a: Version, b: Version) -> Difference:
    """The differences in settings, data and weights, and all metrics."""
    settings = [dict(flat(v.settings)) for v in (a, b)]
    metrics = [{k: shown(x, ".6g") for k, x in v.metrics.items()} for v in (a, b)]
    files = [data_of(store.lineage(v)) for v in (a, b)]
    weights, unlike = weight_distance(a.folder, b.folder)
    changed = {k: pair for k, pair in _beside(*settings).items() if pair[0] != pair[1]}
    moved = {k: pair for k, pair in _beside(*files).items() if pair[0] != pair[1]}
    return Difference(changed, moved, _beside(*metrics), weights, unlike)


def data_of(family: Family) -> dict[str, str]:
    """The digest of every data file in a family, by name."""
    return {r.name: short(digest, 16) for digest, r in family.items() if r.form == "data"}


def _beside(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {key: (str(a.get(key, "")), str(b.get(key, ""))) for key in dict.fromkeys([*a, *b])}


def group(name: str) -> str:
    """The layer group of a tensor: ``layer 3`` within a block, else the module's name."""
    layer = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", f".{name}")
    return (
        f"layer {layer[1]}"
        if layer
        else name.removeprefix("model.").removeprefix("backbone.").rpartition(".")[0] or name
    )


def weight_distance(a: Path, b: Path) -> tuple[dict[str, float], tuple[str, ...]]:
    """Relative L2 distance per layer group, with one tensor in memory at a time, and the tensors that cannot be compared."""
    from safetensors import safe_open

    with _Tensors(a, safe_open) as left, _Tensors(b, safe_open) as right:
        unlike, apart, whole = set(left.places) ^ set(right.places), dict[str, float](), dict[str, float]()
        for name in left.places:
            if name in unlike:
                continue
            x, y = left.get(name), right.get(name)
            if x.shape != y.shape:
                unlike.add(name)
                continue
            x, y, key = x.double(), y.double(), group(name)
            apart[key] = apart.get(key, 0.0) + float((x - y).square().sum())
            whole[key] = whole.get(key, 0.0) + float(x.square().sum())
    keys = sorted(apart, key=lambda key: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)])
    return {key: (apart[key] / (whole[key] or 1.0)) ** 0.5 for key in keys}, tuple(sorted(unlike))


class _Tensors:
    """The tensors of a model folder, in one or several safetensors files, read on demand."""

    def __init__(self, folder: Path, safe_open: Any) -> None:
        self.files = [_opened(path, safe_open) for path in sorted(folder.glob("*.safetensors"))]
        if not self.files:
            raise UserError(f"{folder}: no safetensors files; restore the folder or register the model again.")

    def __enter__(self) -> _Tensors:
        self.opened = [file.__enter__() for file in self.files]
        self.places = {name: file for file in self.opened for name in file.keys()}  # noqa: SIM118 (no mapping)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.__exit__(None, None, None)

    def get(self, name: str) -> Any:
        return self.places[name].get_tensor(name)


def _opened(path: Path, safe_open: Any) -> Any:
    with checked_tensors(path):
        return safe_open(str(path), "pt")


def sizes(folder: Path) -> int:
    """Total bytes of a model folder's files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def rows(found: Difference) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """The nonempty parts with their titles."""
    for name, part in (("settings", found.settings), ("data", found.data), ("metrics", found.metrics)):
        if part:
            yield name, part


def as_json(found: Difference) -> str:
    return dumps(
        {
            "settings": found.settings,
            "data": found.data,
            "metrics": found.metrics,
            "weights": found.weights,
            "unlike": found.unlike,
        },
        indent=2,
    )
