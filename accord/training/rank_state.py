"""The saved state of several ranks: a safetensors file per rank and JSON beside it; nothing is unpickled.

``state.json`` names the folder of the newest state and is replaced last, so that a kill leaves the old state or the new
one.  Rank 0 writes what all ranks hold alike; every rank writes its own shards and random states.  Another number of ranks
reads the rows that it needs from the files that hold them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from accord.distributed import mesh
from accord.distributed.tensors import Stored, part_of
from accord.errors import UserError
from accord.io.atomic import write_json, write_text
from accord.io.readers import read_json
from accord.io.records import Piece, RankState, State, check
from accord.models.hf_format import checked_tensors, write_tensors

INDEX, FOLDER = "state.json", "state"
REMEDY = "remove it to start this stage from the beginning"


# ------------------------------------------------------------------ values as JSON
@dataclass(slots=True)
class _Encoded:
    """Plain values as JSON, and the tensors that they name."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    pieces: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a shard: its first row, the number of its rows and the shape of the whole tensor."""

    def encode(self, value: Any, name: str) -> Any:
        """JSON of nested dicts, lists, numbers and strings; a tensor becomes its name."""
        if (part := part_of(value)) is not None:
            self.tensors[name] = part.rows.cpu().contiguous()
            self.pieces[name] = {"first": part.first, "rows": len(part.rows), "shape": list(part.shape)}
            return {"shard": name}
        if isinstance(value, Tensor):
            self.tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[key, self.encode(inner, f"{name}/{key}")] for key, inner in value.items()]}
        if isinstance(value, (list, tuple)):
            return {"list": [self.encode(inner, f"{name}/{i}") for i, inner in enumerate(value)]}
        return {"float": value.hex()} if isinstance(value, float) else {"value": value}


def _decode(value: Any, tensors: Mapping[str, Any]) -> Any:
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in inner}
    if kind == "list":
        return [_decode(item, tensors) for item in inner]
    if kind == "float":
        return float.fromhex(inner)
    return inner if kind == "value" else tensors[inner]


# ------------------------------------------------------------------ files
def _file(folder: Path, rank: int, end: str) -> Path:
    return folder / f"rank-{rank}.{end}"


def save(directory: Path, fingerprint: str, step: int, parts: Mapping[str, Any], rng: Mapping[str, Any]) -> None:
    """Writes the state of all ranks, which call this together; ``parts`` are equal on all of them except for shards."""
    folder = directory / FOLDER / f"step-{step}-of-{mesh.size()}"
    mesh.at(f"saving the state of step {step}")
    encoded = _Encoded()
    content: dict[str, Any] = {"parts": encoded.encode(parts, "parts")}
    if not mesh.is_main():
        encoded.tensors = {name: x for name, x in encoded.tensors.items() if name in encoded.pieces}
        content = {"parts": {"value": None}}
    content["rng"] = encoded.encode(rng, "rng")
    try:
        write_tensors(_file(folder, mesh.rank(), "safetensors"), encoded.tensors)
        write_text(_file(folder, mesh.rank(), "json"), json.dumps({**content, "pieces": encoded.pieces}))
        mesh.barrier()
        if mesh.is_main():
            record = {"fingerprint": fingerprint, "step": step, "ranks": mesh.size(), "folder": folder.name}
            write_json(directory / INDEX, record)
            for other in folder.parent.iterdir():
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: could not be written ({error.strerror}); the last good state is kept.") from None
    mesh.barrier()


def remove(directory: Path) -> None:
    """Removes the state of ranks from a stage's folder."""
    (directory / INDEX).unlink(missing_ok=True)
    shutil.rmtree(directory / FOLDER, ignore_errors=True)


def read_index(directory: Path) -> dict[str, Any]:
    """The content of ``state.json``; empty where there is none.  Raises UserError where it is damaged."""
    path = directory / INDEX
    if not path.exists():
        return {}
    found = check(read_json(path, REMEDY), State, str(path), REMEDY)
    if Path(found["folder"]).name != found["folder"] or found["folder"] in ("", ".", ".."):
        raise UserError(f"{path}: folder must be a plain name; {REMEDY}.")
    return found


def read(directory: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """The saved ``parts`` and ``rng`` of this rank; shards are read when they are asked for.

    A rank that the saved state has not gets no random states.  Raises UserError naming a file that is missing or damaged.
    """
    folder, ranks = directory / FOLDER / index["folder"], int(index["ranks"])
    records = [_record(folder, rank) for rank in range(ranks)]
    with checked_tensors(_file(folder, 0, "safetensors")):
        main = _tensors(folder, 0, records[0])
        parts = _decode(records[0]["parts"], {**main, **_shards(folder, records)})
        rng = None
        if mesh.rank() < ranks:
            mine = main if mesh.is_main() else _tensors(folder, mesh.rank(), records[mesh.rank()])
            rng = _decode(records[mesh.rank()]["rng"], mine)
    return {"parts": parts, "rng": rng}


def _record(folder: Path, rank: int) -> dict[str, Any]:
    path = _file(folder, rank, "json")
    found = check(read_json(path, REMEDY), RankState, str(path), REMEDY)
    for name, piece in found["pieces"].items():
        check(piece, Piece, f"{path}, {name}", REMEDY)
    return found


def _tensors(folder: Path, rank: int, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """A rank's tensors that are no shards."""
    with safe_open(_file(folder, rank, "safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name not in record["pieces"]}  # noqa: SIM118


def _shards(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Stored]:
    """Every sharded tensor, readable by rows from the files of all ranks."""

    def stored(name: str, shape: tuple[int, ...]) -> Stored:
        def read(start: int, end: int) -> Tensor:
            found = []
            for rank, record in enumerate(records):
                first, rows = (record["pieces"].get(name, {"first": 0, "rows": 0})[key] for key in ("first", "rows"))
                low, high = max(start, first), min(end, first + rows)
                if low < high:
                    with checked_tensors(path := _file(folder, rank, "safetensors")), safe_open(path, "pt") as file:
                        found.append(file.get_slice(name)[low - first : high - first])
            whole = torch.cat(found)
            if len(whole) != end - start:
                raise ValueError(f"{name}: rows are missing")
            return whole

        return Stored(shape, read)

    return {name: stored(name, tuple(piece["shape"])) for name, piece in records[0]["pieces"].items()}
