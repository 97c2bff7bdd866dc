"""A sharded model as a Hugging Face folder: every rank writes the tensors of its share, and no rank holds the whole model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from accord.distributed import mesh
from accord.distributed.tensors import whole
from accord.models.backbone import Backbone
from accord.models.hf_format import INDEX, WEIGHTS, write_json, write_tensors


def save_backbone(model: Backbone, directory: Path) -> None:
    """Writes the folder that ``model.save`` would write, its weights in a file for each rank; all ranks call it together.

    Tensors are gathered one at a time, and each is kept by one rank.
    """
    mesh.at("saving the model")
    state = model.state_dict()
    total = sum(x.numel() * x.element_size() for x in state.values())
    names = [f"model-{rank + 1:05d}-of-{mesh.size():05d}.safetensors" for rank in range(mesh.size())]
    mine: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    written = size = 0
    for name, x in state.items():
        owner = min(mesh.size() - 1, written * mesh.size() // max(total, 1))
        written += x.numel() * x.element_size()
        for plain, tensor in model.exported({name: whole(x)}).items():
            places[plain] = names[owner]
            size += tensor.numel() * tensor.element_size()
            if owner == mesh.rank():
                mine[plain] = tensor.detach().contiguous().cpu().clone()
    if mesh.size() == 1:
        write_tensors(directory / WEIGHTS, mine, {"format": "pt"})
    else:
        write_tensors(directory / names[mesh.rank()], mine, {"format": "pt"})
    if mesh.is_main():
        if mesh.size() > 1:
            write_json(directory, INDEX, {"metadata": {"total_size": size}, "weight_map": places})
        model.save_config(str(directory))
    mesh.barrier()
