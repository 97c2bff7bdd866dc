"""Model folders in the Hugging Face layout: ``config.json`` beside safetensors, whole or in shards.

Only safetensors are read: a pickle can run code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.errors import UserError
from accord.io import atomic, readers
from accord.io.readers import require_file, shorten
from accord.io.records import ShardIndex, check


class NeedsTransformers(UserError):
    """A ``config.json`` asks for ``what``, which accord's own code of its family lacks; transformers may have it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"config.json: {what} is not supported here")
        self.what = what


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_json(directory: str | Path, name: str) -> dict[str, Any]:
    """The object in ``directory/name``.  Raises UserError naming the file when it is absent or not a JSON object."""
    remedy = f"a model folder holds config.json and {WEIGHTS}, write or download it again."
    return readers.read_json(Path(directory) / name, remedy)


def write_json(directory: str | Path, name: str, value: Mapping[str, Any]) -> None:
    """Writes ``directory/name`` with its keys in order, as transformers does.  Raises OSError."""
    atomic.write_json(Path(directory) / name, value, sort_keys=True)


def read_weights(directory: str | Path) -> dict[str, Tensor]:
    """The tensors of a model folder on the CPU, in the dtypes of the file, from one file or from its shards.

    Raises UserError naming the file that is absent or damaged.
    """
    folder = Path(directory)
    if (folder / WEIGHTS).exists():
        return _floating(read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    places = read_index(folder)
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        mine = {tensor: x for tensor, x in read_tensors(folder / name).items() if places.get(tensor) == name}
        state |= _floating(mine, folder / name)
    missing = sorted(set(places) - set(state))
    if missing:
        shard = places[missing[0]]
        raise UserError(f"{folder / INDEX}: tensor {missing[0]} is not in {shard}; download the folder again.")
    return state


def read_index(folder: Path) -> dict[str, str]:
    """The shard of each tensor, a file name in ``folder``.  Raises UserError where the index is missing or damaged."""
    if not (folder / INDEX).exists():
        raise UserError(_no_weights(folder))
    places = check(read_json(folder, INDEX), ShardIndex, str(folder / INDEX), "download it again.")["weight_map"]
    for name in set(places.values()):
        if Path(name).name != name:
            raise UserError(
                f"{folder / INDEX}: shard {shorten(name)!r} is not a plain file name; shards must be beside the index."
            )
    return dict(places)


def _no_weights(folder: Path) -> str:
    """Why a folder without ``WEIGHTS`` and ``INDEX`` cannot be read."""
    if shards := sorted(folder.glob("*.safetensors")):
        return (
            f"{folder / INDEX}: no such file, but {shards[0].name} is here, which is a part of the weights; download the"
            " folder again, with the index."
        )
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        return (
            f"{folder / WEIGHTS}: no such file, only {pickles[0].name}, a pickle, which can run code and is not read; take"
            " the model's safetensors, or save them with transformers' save_pretrained."
        )
    return f"{folder / WEIGHTS}: no such file, nor {INDEX}; save the model as safetensors first."


HEADS_DIFFER = (
    "the head differs from the embeddings although config.json says that they are tied, so it is kept and saved"
)
"""A model's note where its file holds two tensors for one."""


def differ(head: Tensor | None, embeddings: Tensor | None) -> bool:
    """Whether a head that a config ties to the embeddings has values of its own in the file."""
    if head is None or embeddings is None or head.shape != embeddings.shape:
        return False
    return not torch.equal(head, embeddings)


def require_shards(folder: Path) -> None:
    """Raises UserError where a folder's weights are absent, or where a shard does not hold what the index says.

    For a reader other than ``read_weights``: of a tensor in two shards it may take either.
    """
    if (folder / WEIGHTS).exists():
        return
    places = read_index(folder)
    for shard in sorted(set(places.values())):
        with checked_tensors(folder / shard), safe_open(folder / shard, "pt") as file:
            found = set(file.keys())
        for name in sorted(name for name in places if (places[name] == shard) != (name in found)):
            fault = f"is not in {shard}" if places[name] == shard else f"is in {places[name]}, and in {shard} as well"
            raise UserError(f"{folder / INDEX}: tensor {shorten(name)} {fault}; download the folder again.")


def require_layers(layers: int, state: Mapping[str, Tensor]) -> None:
    """Raises UserError where a config asks for more layers than there are tensors, before a model of that size is made."""
    if layers > len(state):
        raise UserError(
            f"config.json: num_hidden_layers is {layers:,}, but the weights are {len(state)} tensors; is it another model's?"
        )


def _floating(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path}: tensor {shorten(name)} is {dtype}, expected floating point; is it quantized?")
    return state


def write_weights(directory: str | Path, state: Mapping[str, Tensor]) -> None:
    """Writes ``model.safetensors``.

    Tensors are made contiguous; two names of one tensor are refused (ValueError): the caller leaves one out.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    pointers = [tensor.data_ptr() for tensor in tensors.values() if tensor.numel()]
    if len(set(pointers)) != len(pointers):
        raise ValueError("two names share one tensor; leave one of them out")
    write_tensors(Path(directory) / WEIGHTS, tensors, {"format": "pt"})  # transformers requires this metadata


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file of contiguous tensors.  Raises OSError or SafetensorError."""
    with atomic.replacing(path) as temporary:
        save_file(dict(state), temporary, metadata=dict(metadata) if metadata else None)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.  Raises UserError naming the file where it is absent or damaged."""
    with checked_tensors(path):
        state: dict[str, Tensor] = load_file(path)
    return state


@contextmanager
def checked_tensors(path: Path) -> Iterator[None]:
    """Names ``path`` in a UserError for what opening and reading it as safetensors may raise."""
    try:
        require_file(path)
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; download the folder again.") from None
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError) as error:
        why = shorten(str(error) or type(error).__name__)
        raise UserError(f"{path}: damaged or not safetensors ({why}); write or download it again.") from None
