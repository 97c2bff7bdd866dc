"""mergekit itself, where it is importable: single tensors, and whole folders from one YAML.

pip install mergekit==0.1.5        (into an environment of its own; its demands change)
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from accord.fusion import methods
from accord.fusion.merge import merge
from accord.fusion.recipe import load_recipe

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(importlib.util.find_spec("mergekit") is None, reason="mergekit is not installed"),
]
MAKER = Path(__file__).parent / "make_mergekit_golden.py"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_mergekit_golden", MAKER)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def ours(
    method: str, given: dict[str, Any], tensors: list[Tensor], weights: list[float], densities: list[float]
) -> Tensor:
    base, models = tensors[0], tensors[1:]
    if method == "slerp":
        return methods.slerp(base, models[0], given["t"])
    if method == "linear":
        return methods.linear(models, weights, given["normalize"])
    mixture = methods.Mixture(weights, given["normalize"], given["lambda"])
    if method == "ties":
        return methods.ties(base, models, mixture, densities)
    return methods.task_arithmetic(base, models, mixture)


def test_merged_tensors_are_mergekits() -> None:
    golden = maker()
    generator = torch.Generator().manual_seed(3)
    groups = [*golden.inputs().values()]
    groups.append([torch.randn(300, 4001, generator=generator) for _ in range(4)])  # SLERP in chunks there
    for tensors in groups:
        for _, method, given in golden.cases():
            found = ours(method, given, tensors, golden.WEIGHTS, golden.DENSITIES)
            expected = golden.by_mergekit(method, given, tensors)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # where terms of about 4 cancel


RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "weight": [0.7, 0.4]},
    "slerp": {"merge_method": "slerp", "base_model": "a", "parameters": {"t": 0.3}},
    "task_arithmetic": {"merge_method": "task_arithmetic", "base_model": "base", "weight": [0.7, -0.4]},
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "weight": [0.7, 0.4],
        "density": [0.3, 0.6],
        "parameters": {"lambda": 0.8, "int8_mask": True},
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_whole_models_merged_from_one_yaml_are_mergekits(name: str, tmp_path: Path) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    for seed, folder in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / folder)
    recipe = dict(RECIPES[name])
    lists = {key: recipe.pop(key) for key in ("weight", "density") if key in recipe}
    recipe["models"] = [
        {"model": str(tmp_path / m), **({"parameters": {k: v[i] for k, v in lists.items()}} if lists else {})}
        for i, m in enumerate(("a", "b"))
    ]
    if "base_model" in recipe:
        recipe["base_model"] = str(tmp_path / recipe["base_model"])
    path = tmp_path / "mergekit.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run_merge(MergeConfiguration.model_validate(recipe), str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False))
    merge(load_recipe(path)[0], tmp_path / "ours")
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert sorted(found) == sorted(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=2e-7, msg=key)
