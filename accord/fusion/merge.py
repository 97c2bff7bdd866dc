"""Merges model folders into one that transformers opens, one tensor at a time, so that memory use is a few tensors."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

from accord.config.fusion import FuseConfig
from accord.errors import UserError
from accord.fusion import checks, methods
from accord.fusion.head import fold_statistics, read_head, restore_statistics, write_head, zero_head
from accord.fusion.weights import Layout, ModelTensors, in_file_order, open_weights, write_streamed
from accord.io.digests import content_digest, read_manifest, verify
from accord.models.hf_format import WEIGHTS, read_json, write_json
from accord.models.reward import has_head
from accord.registry.family import ancestors, plain_settings, write_lineage
from accord.registry.manifest import publish, versions
from accord.runtime.seeds import generator

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "generation_config.json",
)
"""Files that are copied from the first model; code in a model's folder is not."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The folders of a merge, checked to be compatible; ``base`` is None where the method has none."""

    models: tuple[Path, ...]
    base: Path | None
    reward: bool
    paths: Mapping[str, str]  # by config key, including the preferences for calibration
    digests: Mapping[str, str]  # content digests by config key


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one tensor, or one layer of a head, is merged: the same for all except DARE's random draws."""

    config: FuseConfig
    digests: tuple[str, ...]  # of the models; DARE's draws depend on these, not on the order

    def __call__(self, name: str, tensors: Iterable[Tensor], base: Tensor | None) -> Tensor:
        """The merged tensor, in the dtype of ``tensors``, which have one shape."""
        config = self.config
        weights = [source.weight for source in config.models]
        densities = [source.density for source in config.models]
        mixture = methods.Mixture(weights, config.normalizes, config.scaling)
        if config.method == "linear":
            return methods.linear(tensors, weights, config.normalizes)
        if config.method == "slerp":
            first, second = tensors
            return methods.slerp(first, second, config.t)
        assert base is not None
        if config.method == "interpolate":
            (only,) = tensors
            return methods.interpolate(base, only, config.t)
        if config.method == "task_arithmetic":
            return methods.task_arithmetic(base, tensors, mixture)
        if config.method == "ties":
            return methods.ties(base, tensors, mixture, densities)
        dare = methods.dare_linear if config.method == "dare_linear" else methods.dare_ties
        return dare(base, tensors, mixture, methods.Thinning(densities, self.generators(name)))

    def generators(self, name: str) -> list[torch.Generator]:
        """One for each model, seeded by the config's seed, the tensor's name, the model's digest and its index among equals."""
        made = []
        for place, digest in enumerate(self.digests):
            copy = self.digests[:place].count(digest)
            made.append(generator(self.config.seed, f"thinning {name} {digest}", copy))
        return made


def open_sources(config: FuseConfig) -> Sources:
    """The folders that a resolved config names.  Raises UserError where they are not compatible."""
    models = tuple(checks.require_folder(s.model, f"models.{i}.model") for i, s in enumerate(config.models))
    base = checks.require_folder(config.base, "base") if config.base else None
    others = [*models[1:], *([base] if base is not None else [])]
    for folder in dict.fromkeys([models[0], *others]):
        verify(folder)
    for other in others:
        checks.require_same_config(models[0], other)
    checks.require_same_tokenizers(models, base)
    reward = checks.require_same_heads(models, base)
    if config.calibrate and not reward:
        raise UserError(f"calibrate is for reward models, and {models[0]} is not one; leave it out.")
    weights = [open_weights(folder) for folder in dict.fromkeys([models[0], *others])]
    for tensors in weights[1:]:
        checks.require_same_tensors(weights[0], tensors)
    paths = {f"models.{i}.model": str(folder) for i, folder in enumerate(models)}
    paths |= {key: value for key, value in (("base", config.base), ("calibrate", config.calibrate)) if value}
    digests = {key: content_digest(Path(path)) for key, path in paths.items()}
    return Sources(models, base, reward, paths, digests)


def merge(
    config: FuseConfig,
    directory: Path,
    name: str = "",
    key: str = "",
    tick: Callable[[int], None] | None = None,
    sources: Sources | None = None,
) -> dict[str, str]:
    """Writes the merged model to ``directory``, completely or not at all; returns its parents' digests by config key.

    Manifest and lineage record its sources; its kind is the first model's.  ``name`` and ``key`` are the stage's.
    ``tick`` is called after each tensor with its number of parameters, and may raise to stop.  ``sources`` are the
    config's, where they are checked already.  Raises UserError where the models are not compatible.
    """
    sources = sources or open_sources(config)
    family = ancestors(sources.digests, sources.paths)
    metrics: dict[str, float] = {}
    manifest = {
        "kind": str(read_manifest(sources.models[0]).get("kind", "fuse")),
        "name": name or directory.name,
        "key": key,
        "parents": dict(sources.digests),
        "base": sources.digests.get("base", sources.digests["models.0.model"]),
        "data": {k: digest for k, digest in sources.digests.items() if k == "calibrate"},
        "settings": plain_settings(config.model_dump(mode="json")),
        "metrics": metrics,
        "seed": config.seed,
        "versions": versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }

    def write(folder: Path) -> None:
        metrics.update(write_model(config, sources, folder, tick or (lambda parameters: None)))
        write_lineage(folder, family)

    publish(directory, write, manifest)
    return dict(sources.digests)


def write_model(config: FuseConfig, sources: Sources, folder: Path, tick: Callable[[int], None]) -> dict[str, float]:
    """Writes the merged model into an empty folder; returns counts, and the score statistics of a reward model."""
    names = [f"models.{i}.model" for i in range(len(sources.models))]
    models, base = _in_order(config, sources)
    recipe = Recipe(config, tuple(sources.digests[name] for name in names))
    opened = [open_weights(path) for path in models]
    opened_base = open_weights(base) if base is not None else None
    first = sources.models[0]
    layouts = in_file_order(_output(open_weights(first).layouts, config.dtype))
    write_streamed(folder / WEIGHTS, layouts, _merge_tensors(recipe, opened, opened_base, layouts, tick))
    described = read_json(first, "config.json")
    if config.dtype != "first":
        described = {key: value for key, value in described.items() if key != "torch_dtype"} | {"dtype": config.dtype}
    write_json(folder, "config.json", described)
    for name in COPIED:
        if (first / name).is_file():
            shutil.copyfile(first / name, folder / name)
    parameters = sum(math.prod(layout.shape) for layout in layouts.values())
    metrics = {"models": float(len(config.models)), "parameters": float(parameters)}
    if sources.reward:
        _merge_heads(recipe, models, base, first, folder)
        if config.calibrate:
            from accord.fusion.calibrate import calibrate

            calibrate(folder, config)
        _, head = read_head(folder)
        metrics |= {"mean": float(head["mean"]), "deviation": float(head["deviation"])}
    return metrics


def _in_order(config: FuseConfig, sources: Sources) -> tuple[tuple[Path, ...], Path | None]:
    """The models in the order of the method: SLERP begins at the base, which may be one of the two models or a third path."""
    if config.method != "slerp" or sources.base is None:
        return sources.models, sources.base
    others = [folder for folder, s in zip(sources.models, config.models, strict=True) if s.model != config.base]
    return (sources.base, *others), None


def _output(layouts: Mapping[str, Layout], dtype: str) -> dict[str, Layout]:
    if dtype == "first":
        return dict(layouts)
    wanted = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]
    return {
        name: replace(layout, dtype=wanted) if layout.dtype.is_floating_point else layout
        for name, layout in layouts.items()
    }


def _merge_tensors(
    recipe: Recipe,
    models: Sequence[ModelTensors],
    base: ModelTensors | None,
    layouts: Mapping[str, Layout],
    tick: Callable[[int], None],
) -> Iterator[tuple[str, Tensor]]:
    """The tensors one by one; computed in float32 (float64 where the file has it), yielded in the output's dtype."""
    for name, layout in layouts.items():
        if layout.dtype.is_floating_point:
            work = torch.float64 if models[0].layouts[name].dtype is torch.float64 else torch.float32
            base_tensor = None if base is None else base.read(name).to(work)
            one_by_one = (model.read(name).to(work) for model in models)
            result = recipe(name, one_by_one, base_tensor).to(layout.dtype)
            if not result.isfinite().all():
                raise UserError(
                    f"the merged tensor {name} is not finite in {str(layout.dtype).removeprefix('torch.')}; look for NaN in"
                    " the models, or write it in another dtype."
                )
        else:
            result = models[0].read(name)
            for model in models[1:]:
                if not torch.equal(result, model.read(name)):
                    raise UserError(
                        f"{models[0].folder} and {model.folder} differ in {name}, which holds {layout.dtype} and cannot be"
                        f" averaged; {checks.REMEDY}."
                    )
        yield name, result
        tick(math.prod(layout.shape))


def _merge_heads(recipe: Recipe, models: Sequence[Path], base: Path | None, first: Path, folder: Path) -> None:
    """Merges calibrated heads (``accord.fusion.head``) and writes the result with the first model's statistics."""
    shape, original = read_head(first)
    heads = [fold_statistics(read_head(path)[1]) for path in models]
    base_head: dict[str, Tensor] | None = None
    if base is not None:
        base_head = fold_statistics(read_head(base)[1]) if has_head(base) else zero_head(heads[0])
    merged = {
        name: recipe(name, [h[name] for h in heads], None if base_head is None else base_head[name])
        for name in heads[0]
    }
    write_head(folder, shape, restore_statistics(merged, original))
