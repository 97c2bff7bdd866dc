"""A single stage: missing stages that it names are run first, with a message."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from accord.cli import main
from accord.config.common import Optimizer, Stage, TextModel
from accord.config.data import DemoConfig
from accord.config.load import load
from accord.config.sft import BaseConfig, SFTConfig, TextData
from accord.errors import Interrupted, UserError
from accord.pipeline import standalone
from accord.pipeline.standalone import prepare, run_alone
from accord.runtime.run import Run
from accord.stage_kinds.table import STAGE_KINDS

LEAVES: Mapping[str, tuple[str, ...]] = {
    "demo": ("base.jsonl", "sft.jsonl", "preferences.jsonl", "prompts.jsonl", "heldout_prompts.jsonl"),
    "pairs": ("preferences.jsonl", "heldout_preferences.jsonl"),
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Stage]]:
    """Runs in an empty folder, with stages that only write the files that others need, and returns what was run."""
    monkeypatch.chdir(tmp_path)
    runs: list[tuple[str, Stage]] = []

    def stage(kind: str) -> Callable[[Stage, Run], dict[str, float]]:
        def train(config: Any, run: Run) -> dict[str, float]:
            run.open_folders()
            runs.append((kind, config))
            for name in LEAVES.get(kind, ()):
                (run.directory / name).write_text(name)
            if kind not in ("demo", "pairs", "compare"):
                family = getattr(config.model, "base_model", "")
                (run.directory / "model").mkdir(exist_ok=True)
                model = {
                    "model_type": "mamba" if family == "mamba" else "llama",
                    "hidden_size": config.model.d_model,
                    "num_hidden_layers": config.model.n_layers,
                }
                (run.directory / "model" / "config.json").write_text(json.dumps(model))
            return {}

        return train

    for kind, row in STAGE_KINDS.items():
        module = ModuleType(f"stage_{kind}")
        module.train = stage(kind)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        stub = replace(row, function_path=f"{module.__name__}:train", version=1)
        monkeypatch.setitem(STAGE_KINDS, kind, stub)
    return runs


def alone(kind: str, *overrides: str, resume: bool = False) -> None:
    run_alone(kind, load(STAGE_KINDS[kind].settings, None, overrides), resume)


def kinds(ran: list[tuple[str, Stage]]) -> list[str]:
    return [kind for kind, _ in ran]


Ran = list[tuple[str, Stage]]


# ------------------------------------------------------------------ what is made first
@pytest.mark.parametrize(
    ("words", "order"),
    [
        (["demo"], ["demo"]),
        (["base"], ["demo", "base"]),
        (["sft"], ["demo", "base", "sft"]),
        (["dpo"], ["demo", "base", "sft", "dpo"]),
        (["pairs"], ["demo", "base", "sft", "pairs"]),
        (["dpo", "data.train=pairs"], ["demo", "base", "sft", "pairs", "dpo"]),
        (["ppo"], ["demo", "base", "sft", "reward", "ppo"]),
        (["ppo", "reward.source=accord.data.demo:gold_scores"], ["demo", "base", "sft", "ppo"]),
        (["compare"], ["demo", "base", "sft", "dpo", "compare"]),
    ],
    ids=lambda x: " ".join(x),
)
def test_what_is_missing_is_made_in_its_order(
    ran: Ran, words: list[str], order: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    alone(words[0], *words[1:], "seed=7", "threads=1")
    assert kinds(ran) == order
    assert {config.seed for _, config in ran} == {7}
    assert {config.threads for _, config in ran} == {1}
    said = capsys.readouterr().out
    for kind in order[:-1]:
        if kind != "base":
            assert f"names {kind!r}, which is not in checkpoints/rlhf yet: running it first" in said
    if "base" in order[:-1]:
        assert (
            "model.base_model is 'mamba' (hidden size 128, 4 layers), and no such base model is in checkpoints/rlhf yet"
            in said
        )


def test_an_unfinished_stage_and_results_put_aside_are_named_before_it_runs_again(
    ran: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    alone("sft", "seed=1")
    alone("sft", "seed=2")
    done = Path("checkpoints/rlhf/sft/done.json")
    done.rename(done.with_name("begun.json"))
    (aside,) = Path("checkpoints/rlhf/.previous").iterdir()
    capsys.readouterr()
    alone("dpo")
    words = (
        f"names 'sft', whose run in checkpoints/rlhf is not finished (finished runs with their own settings: {aside})"
    )
    assert f"{words}: running it first" in capsys.readouterr().out


def test_what_is_there_is_taken(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    alone("dpo")
    ran.clear()
    capsys.readouterr()
    alone("dpo", "training.beta=0.5")
    assert kinds(ran) == ["dpo"]
    assert "running it first" not in capsys.readouterr().out
    model = ran[0][1].model_dump()["model"]["base_model"]
    assert model == "checkpoints/rlhf/sft/model"


def test_a_stage_writes_to_the_folders_asked_for(ran: Ran) -> None:
    alone("sft", "out=a/b", "logs=c", "name=mine")
    assert sorted(p.name for p in Path("a/b").iterdir()) == ["base", "demo", "mine"]
    assert sorted(p.name for p in Path("c").iterdir()) == ["base", "demo", "mine"]
    assert not Path("checkpoints").exists()


def test_stages_of_a_pipeline_are_known_by_their_names(ran: Ran) -> None:
    """``ppo_lm`` is no kind of stage; where it is finished in ``out`` it can be named."""
    alone("sft")
    alone("dpo", "name=ppo_lm")
    ran.clear()
    alone("compare", "models={sft: sft, ppo: ppo_lm}")
    assert kinds(ran) == ["compare"]
    models = ran[0][1].model_dump()["models"]
    assert models == {"sft": "checkpoints/rlhf/sft/model", "ppo": "checkpoints/rlhf/ppo_lm/model"}
    with pytest.raises(UserError, match=r"models.ppo: 'ppo_ml' does not exist; did you mean 'ppo_lm'\?"):
        alone("compare", "models={sft: sft, ppo: ppo_ml}")


def test_a_folder_of_that_name_goes_first(ran: Ran) -> None:
    Path("sft").mkdir()
    Path("sft/config.json").write_text("{}")
    alone("dpo")
    assert kinds(ran) == ["demo", "dpo"]
    assert ran[-1][1].model_dump()["model"]["base_model"] == "sft"


@pytest.mark.parametrize("override", ["data.train=my.jsonl", "model.base_model=./my/model", "data.heldout=stf"])
def test_nothing_is_made_for_a_name_that_is_nothing(ran: Ran, override: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        alone("dpo", override)
    assert ran == []
    assert not Path("checkpoints").exists()


# ------------------------------------------------------------------ the small base
def test_a_base_of_another_size_or_family_is_made_beside(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    alone("sft")
    alone("sft", "model.d_model=64")
    alone("sft", "model.base_model=transformer", "model.n_layers=2")
    alone("sft", "model.d_model=64")
    alone("sft", "model.d_model=64")
    assert kinds(ran) == ["demo", "base", "sft", "base", "sft", "base", "sft", "sft"]  # the fourth was taken back
    bases = [config.model_dump() for kind, config in ran if kind == "base"]
    assert [b["name"] for b in bases] == ["base", "base_mamba_64x4", "base_transformer_128x2"]
    assert [(b["model"]["base_model"], b["model"]["d_model"], b["model"]["n_layers"]) for b in bases] == [
        ("mamba", 128, 4),
        ("mamba", 64, 4),
        ("transformer", 128, 2),
    ]
    assert bases[1]["training"] == BaseConfig().model_dump()["training"]
    last = ran[-1][1].model_dump()["model"]["base_model"]
    assert last == "checkpoints/rlhf/base_mamba_64x4/model"
    assert "'transformer' (hidden size 128, 2 layers)" in capsys.readouterr().out


def test_compare_may_name_a_small_base(ran: Ran) -> None:
    alone("compare", "models={sft: sft, base: mamba}")
    assert sorted(kinds(ran)) == ["base", "compare", "demo", "sft"]
    assert ran[-1][1].model_dump()["models"]["base"] == "checkpoints/rlhf/base/model"


def test_a_stopped_base_resumes_in_its_folder(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the base is made for SFT; the same command again resumes in the same folder."""
    tries: list[tuple[str, bool]] = []
    real = sys.modules["stage_base"].train

    def stopped(config: Any, run: Run) -> dict[str, float]:
        tries.append((str(run.directory), run.resume))
        run.open_folders()
        (run.directory / "state.pt").write_text("")
        if len(tries) == 1:
            raise Interrupted("base: stopped at step 1 of 9; the state is saved.")
        return dict(real(config, run))

    monkeypatch.setattr(sys.modules["stage_base"], "train", stopped)
    with pytest.raises(Interrupted):
        alone("sft")
    alone("sft", resume=True)
    assert tries == [("checkpoints/rlhf/base", False), ("checkpoints/rlhf/base", True)]
    assert kinds(ran) == ["demo", "base", "sft"]


# ------------------------------------------------------------------ again
def test_a_stage_asked_for_again_is_run_again(ran: Ran) -> None:
    alone("demo")
    alone("demo")
    assert kinds(ran) == ["demo", "demo"]


def test_resuming_what_is_done_says_so(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    alone("demo")
    alone("demo", resume=True)
    assert kinds(ran) == ["demo"]
    assert "checkpoints/rlhf/demo is already done with these settings; nothing to resume" in capsys.readouterr().out


def test_a_prepared_config_holds_paths(ran: Ran) -> None:
    resolved = prepare("reward", STAGE_KINDS["reward"].settings()).model_dump()
    assert resolved["model"]["base_model"] == "checkpoints/rlhf/sft/model"
    assert resolved["data"]["train"] == "checkpoints/rlhf/demo/preferences.jsonl"
    assert resolved["data"]["heldout"] == ""


# ------------------------------------------------------------------ for real
class TinyDemo(DemoConfig):
    base_rows: int = 120
    sft_rows: int = 24
    preference_rows: int = 12
    heldout_base_rows: int = 8
    heldout_sft_rows: int = 8


class TinyBase(BaseConfig):
    data: TextData = TextData(limit=32)


class TinySFT(SFTConfig):
    model: TextModel = TextModel(base_model="transformer", d_model=32, n_layers=1)
    training: Optimizer = Optimizer(batch_size=8)


def test_dpo_runs_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of the documentation, world and base made small through their defaults."""
    monkeypatch.chdir(tmp_path)
    for kind, tiny in (("demo", TinyDemo), ("base", TinyBase), ("sft", TinySFT)):
        row = replace(STAGE_KINDS[kind], settings_path=f"{__name__}:{tiny.__name__}")
        monkeypatch.setitem(STAGE_KINDS, kind, row)
    monkeypatch.setattr(standalone, "BaseConfig", TinyBase)
    config = Path(__file__).parents[2] / "configs" / "dpo_train.yaml"
    assert main(["dpo", "--config", str(config), "log_every=1"]) == 0
    said = capsys.readouterr().out
    steps = [
        "model.base_model names 'sft', which is not in checkpoints/rlhf yet: running it first",
        "model.base_model is 'transformer' (hidden size 32, 1 layers), and no such base model is in checkpoints/rlhf yet",
        "data.train names 'demo', which is not in checkpoints/rlhf yet: running it first",
        "wrote the small world",
        "wrote checkpoints/rlhf/base/model",
        "wrote checkpoints/rlhf/sft/model",
        "wrote checkpoints/rlhf/dpo/model",
        "next: accord chat checkpoints/rlhf/dpo",
    ]
    places = [said.index(step) for step in steps]
    assert places == sorted(places)
    for name, file in (("sft", "sft_epoch_0.pt"), ("sft", "sft_final.pt"), ("dpo", "dpo_final.pt")):
        assert (tmp_path / "checkpoints" / "rlhf" / name / file).exists()
    assert (tmp_path / "logs" / "rlhf" / "dpo" / "dpo.log").exists()
    first = json.loads((tmp_path / "logs" / "rlhf" / "dpo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert main(["dpo", "--config", str(config), "log_every=1"]) == 0
    assert "running it first" not in capsys.readouterr().out
