"""Opens any supported language model by the contents of its folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from accord.errors import UserError
from accord.io.digests import verify
from accord.io.readers import shorten
from accord.models.backbone import Backbone
from accord.models.generation_config import read_generation
from accord.models.hf_format import NeedsTransformers, read_json, require_shards

LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")


def open_backbone(path: str | Path) -> Backbone:
    """The model in a folder (ours or Hugging Face's) or in a .gguf file, in float32, without dropout, on the CPU.

    Its parameters require gradients; freeze it with ``requires_grad_(False)``.

    Raises UserError where nothing can be opened, where a folder of ours does not match its manifest, and where a weight
    is not finite.
    """
    generation = read_generation(path) if Path(path).is_dir() else {}
    backbone = _opened(Path(path))
    require_finite(path, backbone.named_parameters())
    backbone.generation = generation
    return backbone


def require_finite(path: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises UserError naming the first tensor with NaN or infinity, which training could only blame on something else."""
    for name, tensor in tensors:
        if not tensor.sum().isfinite() and not tensor.isfinite().all():  # a sum needs no memory
            bad = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{path}: the weights hold NaN or infinity ({bad:,} of {tensor.numel():,} in the tensor {name}), so the"
                " model can only fail; train or download it again."
            )


def _opened(source: Path) -> Backbone:
    if source.suffix == ".gguf":
        from accord.models.gguf import open_gguf

        return open_gguf(source)
    family = model_type(source)
    verify(source)
    try:
        if family == "mamba":
            from accord.models.mamba import Mamba

            return Mamba.open(str(source))
        if family in LLAMA_FAMILY:
            from accord.models.transformer import Transformer

            return Transformer.open(str(source))
    except NeedsTransformers as why:
        return _through_transformers(source, why)
    return _through_transformers(source)


def _through_transformers(source: Path, why: NeedsTransformers | None = None) -> Backbone:
    """A model of any family; ``why`` is what the fast code of its family lacks."""
    from accord.models.hf import SLOW, CausalLM, slower

    if source.is_dir():
        require_shards(source)  # transformers does not say which file is damaged
    backbone = CausalLM.open(str(source))
    backbone.notes = (slower(why) if why else SLOW, *backbone.notes)
    return backbone


def model_type(source: Path) -> str:
    """``model_type`` of a folder's config.json; empty for a name that is no folder (a model id).

    Raises UserError where it names none, and for a folder of the original Mamba code.
    """
    config = source / "config.json"
    if not config.exists():
        if source.is_dir():
            raise UserError(f"{source}: no config.json here, so this is not a model folder.")
        return ""
    found = read_json(source, "config.json")
    family = found.get("model_type", "")
    if family == "" and "d_model" in found and "ssm_cfg" in found:
        raise UserError(
            f"{source}: a folder of the original Mamba code (d_model and ssm_cfg in config.json), which has other names and a"
            " pickle of weights; take the same model converted for transformers, whose name ends in -hf"
            " (state-spaces/mamba-130m-hf for state-spaces/mamba-130m)."
        )
    if family == "":
        raise UserError(f"{config}: names no model_type, so its family is unknown; download the folder again.")
    if not isinstance(family, str):
        raise UserError(f"{config}: model_type must be a name such as 'llama', found {shorten(family)}.")
    return family


def small_backbone(family: str, d_model: int, n_layers: int, vocab_size: int, eos_id: int, pad_id: int) -> Backbone:
    """An untrained small model of the named family: ``mamba`` or ``transformer``."""
    if family == "mamba":
        from accord.models.mamba import small_mamba

        return small_mamba(d_model, n_layers, vocab_size, eos_id, pad_id)
    from accord.models.transformer import small_transformer

    return small_transformer(d_model, n_layers, vocab_size, eos_id, pad_id)


def keep_layers(backbone: Backbone, layers: int) -> None:
    """Drops all but the first ``layers`` layers; the final norm follows the last of them.  0 keeps all.

    Raises UserError where the model has fewer, or is of a family opened through transformers.
    """
    from accord.models.mamba import Mamba
    from accord.models.transformer import Transformer

    if layers == 0:
        return
    if not isinstance(backbone, (Mamba, Transformer)):
        raise UserError("model.layers: only models of the Llama and Mamba families can lose layers; leave it out.")
    if layers > backbone.config.n_layers:
        raise UserError(f"model.layers is {layers}, but the model has {backbone.config.n_layers}; make it smaller.")
    backbone.layers = backbone.layers[:layers]
    backbone.config = replace(backbone.config, n_layers=layers)
