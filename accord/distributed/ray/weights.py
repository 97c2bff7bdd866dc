"""The policy's weights by version, from the learner to workers: one flat array, or what changed in it.

A delta holds the places and values of the numbers whose bits changed, so it is exact: a worker has the same weights however
it got them.  In bfloat16 and at small learning rates most numbers do not change from one version to the next.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

WireDtype = Literal["float32", "bfloat16"]
Flat = npt.NDArray[Any]
"""All parameters of a model one after another: uint32 or uint16, the bits of float32 or bfloat16."""
LONGEST_CHAIN = 8
"""Deltas after a full version; a new worker needs all of them."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The numbers in which a version differs from the one before it."""

    places: Flat
    values: Flat


@dataclass(frozen=True, slots=True)
class Weights:
    """How a worker gets a version: a full one, and the deltas that follow it, by their places in the object store."""

    version: int
    chain: tuple[tuple[int, Any], ...]  # (version, object reference): the first is full


@torch.no_grad()
def flat_weights(model: nn.Module, dtype: WireDtype) -> Flat:
    """The bits of all parameters, each once, in the order of ``named_parameters``; a copy."""
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    parts = [parameter.detach().to("cpu", kind).reshape(-1) for parameter in model.parameters()]
    bits = torch.uint32 if dtype == "float32" else torch.uint16
    flat: Flat = torch.cat(parts).view(bits).numpy()
    return flat


@torch.no_grad()
def load_flat(model: nn.Module, flat: Flat) -> None:
    """Writes a version into a model of the same parameters, in place.  Raises ValueError for another number of them."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    if sum(sizes) != len(flat):
        raise ValueError(f"{len(flat)} numbers for a model of {sum(sizes)}")
    dtype = torch.float32 if flat.dtype == np.uint32 else torch.bfloat16
    first = 0
    for parameter, size in zip(model.parameters(), sizes, strict=True):
        part = flat[first : first + size].copy()  # the object store's arrays cannot be written, which torch warns of
        parameter.copy_(torch.from_numpy(part).view(dtype).view(parameter.shape))
        first += size


def changes(old: Flat, new: Flat) -> Delta:
    """What to write into ``old`` to make it ``new``, bit for bit."""
    places = np.flatnonzero(old != new)
    narrow = places.astype(np.uint32) if len(new) < 2**32 else places
    return Delta(narrow, new[places])


def size_of(message: Flat | Delta) -> int:
    """Bytes of a full version or of a delta."""
    return message.places.nbytes + message.values.nbytes if isinstance(message, Delta) else message.nbytes


def digest(flat: Flat) -> str:
    """16 hexadecimal digits of the weights' bits."""
    return hashlib.blake2b(flat.data, digest_size=8).hexdigest()


class Publisher:
    """Puts versions into Ray's object store, whole or as deltas where those are smaller."""

    def __init__(self, transfer: Literal["full", "delta"]) -> None:
        self._transfer = transfer
        self._last: Flat | None = None
        self._chain: tuple[tuple[int, Any], ...] = ()

    def publish(self, version: int, flat: Flat) -> tuple[Weights, int]:
        """How workers get this version, and the bytes that were put there for it."""
        import ray

        message: Flat | Delta = flat
        if self._last is not None and len(self._chain) <= LONGEST_CHAIN:
            delta = changes(self._last, flat)
            message = delta if size_of(delta) < flat.nbytes else flat
        reference = ray.put(message)
        before = self._chain if isinstance(message, Delta) else ()
        self._chain = (*before, (version, reference))
        self._last = flat if self._transfer == "delta" else None
        return Weights(version, self._chain), size_of(message)


class Received:
    """A worker's version of the weights, in its model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.version = -1
        self._flat: Flat = np.empty(0, np.uint32)

    def take(self, weights: Weights) -> None:
        """Makes the model that version; what is missing is read from the object store."""
        import ray

        if weights.version == self.version:
            return
        known = [version for version, _ in weights.chain]
        missing = known.index(self.version) + 1 if self.version in known else 0
        for message in ray.get([reference for _, reference in weights.chain[missing:]]):
            if isinstance(message, Delta):
                self._flat = self._flat if self._flat.flags.writeable else self._flat.copy()
                self._flat[message.places] = message.values
            else:
                self._flat = message
        load_flat(self._model, self._flat)
        self.version = weights.version
