"""Model folders in the Hugging Face layout: ``config.json`` beside safetensors, whole or in shards.

Only safetensors are read: a pickle can run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.errors import UserError
from accord.io import atomic, readers

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
    if (folder / WEIGHTS).is_file():
        return _load(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder / WEIGHTS}: no such file, nor {INDEX}; save the model as safetensors first")
    places = read_json(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{folder / INDEX}: key weight_map must map tensor names to file names; download it again")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(
                f"{folder / INDEX}: shard {name!r} is not a plain file name; shards must be beside the index"
            )
        state.update(_load(folder / name))
    missing = sorted(set(places) - set(state))
    if missing:
        raise UserError(f"{folder / INDEX}: tensor {missing[0]} is in no shard; download the folder again")
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


def _load(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; download the folder again") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or not safetensors ({error}); write or download it again") from None
    return state
