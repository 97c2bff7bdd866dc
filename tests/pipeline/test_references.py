"""Names in configs become paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.config.common import Stage
from accord.config.load import load
from accord.config.sft import SFTConfig
from accord.errors import UserError
from accord.pipeline.references import is_function, references, require, resolve
from accord.stage_kinds.table import STAGE_KINDS

ON_HUB = f"org/name@{'c' * 40}"
"""A model of the hub at a commit, which needs no connection."""


def config(kind: str, *overrides: str) -> Stage:
    return load(STAGE_KINDS[kind].settings, None, overrides)


def named(kind: str, *overrides: str) -> dict[str, str]:
    return {reference.key: value for reference, value in references(kind, config(kind, *overrides))}


def stages(*names: str) -> Callable[[str], Path | None]:
    return {name: Path("out") / name for name in names}.get


def value_of(made: Stage, key: str) -> Any:
    values: Any = made.model_dump()
    for part in key.split("."):
        values = values[int(part)] if part.isdigit() else values[part]
    return values


# ------------------------------------------------------------------ what names something
@pytest.mark.parametrize(
    ("kind", "overrides", "expected"),
    [
        ("demo", [], {}),
        ("base", [], {"data.train": "demo"}),
        ("sft", [], {"model.base_model": "mamba", "data.train": "demo"}),
        ("base", ["data.heldout=h"], {"data.train": "demo", "data.heldout": "h"}),
        ("reward", [], {"model.base_model": "sft", "data.train": "demo"}),
        ("dpo", ["data.heldout=h"], {"model.base_model": "sft", "data.train": "demo", "data.heldout": "h"}),
        ("ppo", [], {"model.base_model": "sft", "reward.source": "reward", "prompts": "demo"}),
        ("ppo", ["environment=CartPole-v1"], {}),
        ("ppo", ["model.obs_dim=3"], {"model.base_model": "sft", "reward.source": "reward", "prompts": "demo"}),
        ("pretrained", [], {}),
        ("fuse", ["models=[a, b]"], {"models.0.model": "a", "models.1.model": "b"}),
        (
            "ppo",
            ["reward.terms=[{source: a}, {source: 'm:f'}]", "reference=base"],
            {
                "model.base_model": "sft",
                "reference": "base",
                "prompts": "demo",
                "reward.terms.0.source": "a",
                "reward.terms.1.source": "m:f",
            },
        ),
        ("compare", ["models={sft: sft}"], {"reference": "sft", "prompts": "demo", "models.sft": "sft"}),
        (
            "compare",
            ["models={sft: a, ppo: b}", "reward_model=r", "base=base"],
            {
                "reference": "sft",
                "base": "base",
                "reward_model": "r",
                "pairs": "pairs",
                "prompts": "demo",
                "models.sft": "a",
                "models.ppo": "b",
            },
        ),
    ],
)
def test_the_references_of_a_config_are_found(kind: str, overrides: list[str], expected: dict[str, str]) -> None:
    assert named(kind, *overrides) == expected


def test_module_function_names_are_recognized_among_paths() -> None:
    assert is_function("accord.data.demo:gold_scores")
    assert not is_function("sft")
    assert not is_function("C:/models/sft")
    assert not is_function("./a:b/c")


# ------------------------------------------------------------------ resolving
def test_stages_become_the_files_that_a_field_wants() -> None:
    made = resolve("dpo", config("dpo", "data.train=pairs", "data.heldout=pairs"), stages("sft", "pairs"))
    assert value_of(made, "model.base_model") == "out/sft/model"
    assert value_of(made, "data.train") == "out/pairs/preferences.jsonl"
    assert value_of(made, "data.heldout") == "out/pairs/heldout_preferences.jsonl"
    made = resolve("sft", config("sft", "model.base_model=base"), stages("base", "demo"))
    assert value_of(made, "data.train") == "out/demo/sft.jsonl"
    made = resolve(
        "ppo", config("ppo", "reward.terms=[{source: reward, weight: 2}, {source: 'm:f'}]"), stages("reward")
    )
    assert value_of(made, "reward.terms.0") == {"source": "out/reward/model", "weight": 2.0}
    assert value_of(made, "reward.terms.1.source") == "m:f"
    made = resolve("compare", config("compare", "models={sft: sft, ppo: ppo_lm}"), stages("sft", "ppo_lm", "demo"))
    assert value_of(made, "models") == {"sft": "out/sft/model", "ppo": "out/ppo_lm/model"}
    assert value_of(made, "prompts") == "out/demo/heldout_prompts.jsonl"


def test_held_out_texts_are_those_beside_the_training_texts_where_there_are_any(tmp_path: Path) -> None:
    """Of a stage or a folder; a file has none beside it, and a share of the prompts or another file takes precedence."""
    for name, files in (("demo", ("sft", "heldout_sft")), ("mine", ("sft",)), ("other", ("heldout_sft",))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / f"{file}.jsonl").write_text("{}\n")
    stage, folder, rows = {"demo": tmp_path / "demo"}.get, f"{tmp_path}/demo", f"{tmp_path}/demo/sft.jsonl"
    beside, other = f"{tmp_path}/demo/heldout_sft.jsonl", f"{tmp_path}/other"

    def heldout(*words: str) -> str:
        made = resolve("sft", config("sft", f"model.base_model={ON_HUB}", *words), stage)
        require(made, "sft", [])
        return str(value_of(made, "data.heldout"))

    assert heldout() == heldout(f"data.train={folder}") == beside
    assert heldout(f"data.train={rows}") == heldout(f"data.train={tmp_path}/mine") == ""
    assert heldout("data.heldout_fraction=0.1") == ""
    assert heldout(f"data.heldout={other}") == f"{other}/heldout_sft.jsonl"
    require(config("sft", f"model.base_model={ON_HUB}", f"data.train={folder}"), "sft", [])
    reward = resolve("reward", config("reward", f"model.base_model={ON_HUB}", f"data.train={folder}"), stage)
    assert value_of(reward, "data.heldout") == ""


def test_resolving_changes_nothing_else_and_not_the_config_itself() -> None:
    before = config("ppo", "training.gamma=0.5", "seed=3", "reward.terms=[{source: reward}]")
    copy = before.model_copy(deep=True)
    after = resolve("ppo", before, stages("sft", "reward", "demo"))
    assert before == copy
    assert type(after) is type(before)
    assert (value_of(after, "training.gamma"), after.seed) == (0.5, 3)


def test_folders_files_and_outside_names_stay(tmp_path: Path) -> None:
    (tmp_path / "stage" / "model").mkdir(parents=True)
    (tmp_path / "stage" / "model" / "config.json").write_text("{}")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    given = [f"model.base_model={tmp_path}/stage", f"data.train={tmp_path}/stage"]
    made = resolve("sft", config("sft", *given), stages())
    assert value_of(made, "model.base_model") == f"{tmp_path}/stage/model"
    assert value_of(made, "data.train") == f"{tmp_path}/stage/sft.jsonl"
    for model in (f"{tmp_path}/hf", ON_HUB, "x.gguf", "mamba"):
        assert (
            value_of(resolve("sft", config("sft", f"model.base_model={model}"), stages()), "model.base_model") == model
        )
    made = resolve("sft", config("sft", "data.train=rows.jsonl"), stages())
    assert value_of(made, "data.train") == "rows.jsonl"


# ------------------------------------------------------------------ what does not exist
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.base_model=bas", "model.base_model: 'bas' does not exist; did you mean 'base'?"),
        (
            "model.base_model=zzz",
            "model.base_model: 'zzz' does not exist; name a stage (demo, base), a folder or a file.",
        ),
        ("model.base_model=/no/such", "model.base_model: '/no/such' does not exist"),
        ("data.train=no/such.jsonl", "data.train: 'no/such.jsonl' does not exist"),
        ("data.heldout=no/such.jsonl", "data.heldout: 'no/such.jsonl' does not exist"),
        ("data.heldout=dmo", "data.heldout: 'dmo' does not exist; did you mean 'demo'?"),
        (
            "model.base_model=mamba",
            "model.base_model: 'mamba' does not exist; put a stage of kind 'base' before this one",
        ),
    ],
)
def test_names_of_nothing_are_refused_with_a_suggestion(override: str, message: str) -> None:
    given = config("sft", "model.base_model=base", override)
    with pytest.raises(UserError) as caught:
        require(given, "sft", ["demo", "base"], made=["demo", "base"], where="p.yaml: ")
    assert str(caught.value).startswith(f"p.yaml: {message}")


def test_a_stage_that_the_pipeline_lacks_is_to_be_put_before() -> None:
    given = config("sft", "data.train=demo")
    with pytest.raises(
        UserError, match=r"data.train: 'demo' does not exist; put a stage 'demo' before this one, or name"
    ):
        require(given, "sft", [], made=["mamba"])
    given = config("sft", "data.train=zzz")
    with pytest.raises(UserError, match=r"data.train: 'zzz' does not exist; name a folder or a file.$"):
        require(given, "sft", [], made=["mamba"])


def test_a_reward_of_nothing_may_have_been_meant_as_a_function() -> None:
    message = r"reward.source: 'zzz' does not exist; name a stage \(demo\), a folder or a file, or a function as module:function.$"
    with pytest.raises(UserError, match=message):
        require(config("ppo", "reward.source=zzz"), "ppo", ["demo"], made=["sft", "demo"])


def test_names_of_stages_files_and_folders_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for override in (f"model.base_model={ON_HUB}", f"data.train={tmp_path}/rows.jsonl", "seed=1"):
        require(config("sft", "model.base_model=base", override), "sft", ["demo"], made=["demo", "base"])
    require(config("ppo", "reward.source=json:dumps"), "ppo", [], made=["sft", "demo"])


def test_a_stage_without_the_file_that_is_wanted(tmp_path: Path) -> None:
    """The small world has no held-out pairs: the error names the file, when the stage is resolved."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "preferences.jsonl").write_text("{}\n")
    given = config("dpo", f"model.base_model={ON_HUB}", "data.heldout=demo")
    made = resolve("dpo", given, {"demo": tmp_path / "demo"}.get)
    with pytest.raises(UserError, match=r"data.heldout: '.*/demo/heldout_preferences.jsonl' does not exist"):
        require(made, "dpo", ["demo"])


def test_an_empty_file_is_refused_before_anything_is_made_for_it(tmp_path: Path) -> None:
    empty = tmp_path / "rows.jsonl"
    empty.touch()
    config = SFTConfig.model_validate({"data": {"train": str(empty)}})
    with pytest.raises(UserError, match=r"data\.train: .*rows\.jsonl is empty"):
        require(config, "sft", ["demo", "demo"], made=["mamba"])
    rows = tmp_path / "more.jsonl"
    rows.write_text("{}\n")
    heldout = SFTConfig.model_validate({"data": {"train": str(rows), "heldout": str(empty)}})
    with pytest.raises(UserError, match=r"data\.heldout: .*rows\.jsonl is empty"):
        require(heldout, "sft", ["demo"], made=["mamba"])
    empty.write_text("{}\n")
    require(config, "sft", ["demo"], made=["mamba"])
    config = SFTConfig.model_validate({"data": {"train": str(tmp_path / "zzz")}})
    with pytest.raises(UserError, match=r"name a stage \(demo\), a folder"):
        require(config, "sft", ["demo", "demo"], made=["mamba"])
