"""mergekit's YAML becomes a config of ours, or is refused in a sentence; and what FuseConfig takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.config.fusion import FuseConfig
from accord.config.load import load
from accord.errors import UserError
from accord.fusion.recipe import is_recipe, load_recipe
from accord.pipeline.references import references, resolve
from accord.pipeline.task import stage_key

TIES = """\
# as mergekit's documentation writes it
models:
  - model: org/base
  - model: a
    parameters: { weight: 0.5, density: 0.3 }
  - model: b
    parameters:
      weight: 0.2
merge_method: ties
base_model: org/base
parameters:
  density: 0.7
  normalize: false
  lambda: 0.9
  int8_mask: true
dtype: bfloat16
"""
SLERP = """\
models: [{ model: a }, { model: b }]
merge_method: slerp
base_model: b
parameters: { t: 0.25 }
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mergekit.yaml"
    path.write_text(text)
    return str(path)


def test_a_ties_recipe_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, TIES)
    assert is_recipe(path)
    config, notes = load_recipe(path, ["name=fused", "scaling=0.8"])
    assert config.method == "ties"
    assert config.base == "org/base"
    assert [(s.model, s.weight, s.density) for s in config.models] == [("a", 0.5, 0.3), ("b", 0.2, 0.7)]
    assert (config.normalizes, config.scaling, config.dtype, config.name) == (False, 0.8, "bfloat16", "fused")
    assert len(notes) == 1
    assert "int8_mask" in notes[0]


def test_a_slerp_recipe_goes_from_its_base(tmp_path: Path) -> None:
    config, notes = load_recipe(written(tmp_path, SLERP))
    assert (config.method, config.base, config.t) == ("slerp", "b", 0.25)
    assert [s.model for s in config.models] == ["a", "b"]
    assert notes == []


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "task_arithmetic"])
def test_the_other_methods_with_a_base_are_read(method: str, tmp_path: Path) -> None:
    text = TIES.replace("merge_method: ties", f"merge_method: {method}").replace("  normalize: false\n", "")
    config, _ = load_recipe(written(tmp_path, text))
    assert config.method == method
    assert not config.normalizes, "as mergekit's default"
    assert [s.density for s in config.models] == ([1, 1] if method == "task_arithmetic" else [0.3, 0.7])


def test_a_linear_recipe_is_read(tmp_path: Path) -> None:
    text = (
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 3}\n- model: b\n  parameters: {weight: 1}\n"
    )
    config, _ = load_recipe(written(tmp_path, text))
    assert config.normalizes
    assert [s.weight for s in config.models] == [3, 1]


REFUSED = {
    "slices": ("merge_method: slerp\nslices:\n- sources: []\n", "line 2: slices: layer ranges are not merged"),
    "method": ("merge_method: karcher\nmodels: [{model: a}]\n", "line 1: merge_method: 'karcher' is not among linear"),
    "gradient": (SLERP.replace("t: 0.25", "t: [0, 1]"), "t: values for single layers or tensors are not supported"),
    "filter": (SLERP.replace("t: 0.25", "t: {filter: mlp, value: 1}"), "values for single layers"),
    "no t": (SLERP.replace("t: 0.25", ""), "slerp needs t"),
    "no weight": (TIES.replace("weight: 0.5, ", ""), "models.1: a has no parameters.weight"),
    "union": (TIES + "tokenizer_source: union\n", "line 17: tokenizer_source: vocabularies are not merged"),
    "linear base": (
        "merge_method: linear\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}]\n",
        "line 2: base_model: mergekit would average it",
    ),
    "rescale": (TIES.replace("int8_mask", "rescale"), "rescale: ties never rescales here"),
    "unknown": (TIES + "slice: 1\n", "line 17: slice: unknown in a mergekit file"),
    "parameter": (TIES.replace("int8_mask", "gamma"), "line 15: parameters.gamma: unknown here"),
    "dtype": (TIES.replace("bfloat16", "int8"), "line 16: dtype: 'int8' is not among"),
    "models": ("merge_method: linear\n", "models: expected a list"),
    "no base": (TIES.replace("base_model: org/base\n", ""), "org/base has no parameters.weight"),
    "density": (TIES.replace("density: 0.3", "density: 3"), "density: expected less than or equal to 1, found 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_something_else_is_refused(name: str, tmp_path: Path) -> None:
    text, said = REFUSED[name]
    with pytest.raises(UserError) as caught:
        load_recipe(written(tmp_path, text))
    assert said in str(caught.value)
    assert str(tmp_path / "mergekit.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_takes_either_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "fuse", "--config", written(tmp_path, TIES), "seed=3"]) == 0
    shown = capsys.readouterr()
    assert "method: ties" in shown.out
    assert "seed: 3" in shown.out
    assert "note: parameters.int8_mask" in shown.err
    ours = tmp_path / "ours.yaml"
    ours.write_text(shown.out)
    assert load(FuseConfig, ours) == load_recipe(str(tmp_path / "mergekit.yaml"), ["seed=3"])[0]
    assert main(["fuse", "--config", written(tmp_path, "merge_method: della\n")]) == 2
    assert "della" in capsys.readouterr().err


# ------------------------------------------------------------------ FuseConfig
@pytest.mark.parametrize(
    "models",
    [
        {"x": {"model": "a", "weight": 2.0}, "y": "b"},
        {"x": {"weight": 2.0, "model": "a"}, "y": {"model": "b"}},
        [{"model": "a", "weight": 2.0}, "b"],
    ],
)
def test_models_by_label_or_in_a_list(models: Any) -> None:
    config = FuseConfig(models=models)
    assert [(s.model, s.weight) for s in config.models] == [("a", 2.0), ("b", 1.0)]


def test_overrides_name_models_by_their_label(tmp_path: Path) -> None:
    config = load(FuseConfig, None, ["models.x.model=a", "models.y.model=b", "models.y.weight=0.5", "normalize=false"])
    assert [(s.model, s.weight) for s in config.models] == [("a", 1.0), ("b", 0.5)]
    assert load(FuseConfig, None, ["method=ties", "base=c", "lambda=0.4", "models.x=a"]).scaling == 0.4


BAD = [
    ({"base": "c"}, "method=linear takes no base"),
    ({"models": ["a", {"model": "b", "weight": -1.0}]}, "weights sum to zero"),
    ({"method": "slerp", "models": ["a", "b", "c"]}, "slerp goes from one model to another, but 3 are named"),
    ({"method": "slerp", "models": ["a"]}, "but 1 are named"),
    ({"method": "slerp", "models": ["a", "b"], "base": "c"}, "but 3 are named"),
    ({"method": "ties"}, "method=ties needs base"),
    ({"method": "interpolate", "base": "c"}, "takes one model beside the base, but 2 are named"),
    ({"models": [{"model": "a", "density": 0.5}]}, "density has no effect with method=linear"),
    ({"method": "slerp", "models": [{"model": "a", "weight": 0.5}, "b"]}, "weight has no effect with method=slerp"),
    ({"t": 0.3}, "t has no effect with method=linear"),
    ({"scaling": 0.3}, "scaling has no effect with method=linear"),
    ({"method": "interpolate", "base": "c", "models": ["a"], "normalize": True}, "normalize has no effect"),
    ({"models": []}, "at least 1 item"),
]


@pytest.mark.parametrize(("values", "said"), BAD)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FuseConfig(**values)


def test_its_references_resolve_and_its_key_knows_order_and_contents() -> None:
    config = FuseConfig(method="ties", base="c", models=["a", "b"])
    assert {r.key: value for r, value in references("fuse", config)} == {
        "base": "c",
        "models.0.model": "a",
        "models.1.model": "b",
    }
    found: Any = resolve("fuse", config, lambda name: Path("out") / name)
    assert found.base == "out/c/model"
    assert [s.model for s in found.models] == ["out/a/model", "out/b/model"]
    digests = {"base": "1", "models.0.model": "2", "models.1.model": "3"}
    key = stage_key("fuse", config, digests)
    assert key == stage_key("fuse", found, digests), "paths are not in it"
    other = FuseConfig(method="ties", base="c", models=["b", "a"])
    assert key != stage_key("fuse", other, {**digests, "models.0.model": "3", "models.1.model": "2"})
    assert key != stage_key("fuse", FuseConfig(method="ties", base="c", models=["a", "b"], scaling=0.5), digests)
