"""Saved states, whole whenever the process is killed."""

from __future__ import annotations

import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from typing_extensions import TypedDict

from accord.distributed import mesh
from accord.distributed.shards import is_sharded
from accord.distributed.tensors import complete, fit
from accord.errors import UserError
from accord.io.atomic import replacing_file
from accord.io.readers import require_file, shorten
from accord.io.records import Count, check
from accord.training import rank_state

_READ_ERRORS = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that a damaged file may raise."""


class Resumable(Protocol):
    """Has ``state_dict`` and ``load_state_dict``: weights, an optimizer, a position in the data."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


def write_pt(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values atomically.  ``torch.load(path)`` opens the file (a safe, weights-only load)."""
    try:
        with replacing_file(path) as file:
            torch.save(dict(content), file)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror}); the last good state is kept.") from None


def read_pt(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Opens a .pt file without unpickling code.  Raises UserError naming the file."""
    try:
        require_file(path)
        with zipfile.ZipFile(path) as parts:  # torch reads other formats too, and does not look at the checksums
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("compressed")  # never by torch: it could unpack to any size
            if damaged := parts.testzip():
                raise ValueError(damaged)
        content = torch.load(path, map_location=device, weights_only=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such checkpoint.") from None
    except _READ_ERRORS as error:
        raise UserError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); delete it to start again."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a checkpoint of ours (holds a {type(content).__name__}).")
    return content


class _Saved(TypedDict):
    step: Count
    rng: dict[str, Any]
    parts: dict[str, Any]


class Checkpoint:
    """The resumable state of one run: named parts, in one file, or of several ranks in one file each.

    Either form is read whatever wrote it: a state of 2 ranks continues on 1 or on 4.
    """

    def __init__(self, path: Path, fingerprint: str, parts: Mapping[str, Resumable]) -> None:
        self.path, self.fingerprint, self.parts = path, fingerprint, parts

    def save(self, step: int) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if mesh.size() > 1 or any(map(is_sharded, self.parts.values())):
            rank_state.save(self.path.parent, self.fingerprint, step, state, _rng_state())
            if mesh.is_main():
                self.path.unlink(missing_ok=True)
            return
        write_pt(self.path, {"fingerprint": self.fingerprint, "step": step, "rng": _rng_state(), "parts": state})
        rank_state.remove(self.path.parent)

    def restore(self) -> int:
        """Loads every part and returns the step; 0 where there is no saved state.

        Raises UserError where the state belongs to other settings.
        """
        index = rank_state.read_index(self.path.parent)
        if not self.path.exists() and not index:
            return 0
        path, remedy = self.path, rank_state.REMEDY
        content = read_pt(path) if path.exists() else {}
        if content:
            check(content, _Saved, str(path), remedy)
        if index and index["step"] >= content.get("step", 0):
            path = path.with_name(rank_state.INDEX)
            content = {**index, **rank_state.read(path.parent, index)}
        if content.get("fingerprint") != self.fingerprint or content["parts"].keys() != self.parts.keys():
            raise UserError(
                f"{path}: this state was made with other settings or inputs; run without --resume to start again."
            )
        place = "random states"
        try:
            for name, part in self.parts.items():
                place = f"part {name!r}"
                part.load_state_dict(_fitted(content["parts"][name], part))
            place = "random states"
            if content["rng"] is not None:
                _restore_rng(content["rng"])
        except _READ_ERRORS as error:
            why = shorten(str(error) or type(error).__name__, 300)
            raise UserError(f"{path}: its {place} cannot be restored ({why}); {remedy}.") from error
        mesh.barrier()
        return int(content["step"])

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
        rank_state.remove(self.path.parent)


def _fitted(saved: dict[str, Any], part: Resumable) -> dict[str, Any]:
    """A module's saved weights, whole or in parts, as this rank holds them; other parts fit their own."""
    if not isinstance(part, nn.Module):
        return saved
    wanted = part.state_dict()
    return {name: fit(x, wanted[name]) if name in wanted else complete(x) for name, x in saved.items()}


def _rng_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_rng(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
