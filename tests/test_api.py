"""accord.run, accord.load and accord.stages: what the command line does, from Python."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import accord
from accord.errors import UserError
from accord.stage_kinds.table import STAGE_KINDS

SMALL = {"d_model": 32, "n_layers": 1, "base_model": "transformer"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which a few stages have run from Python."""
    folder, threads = tmp_path_factory.mktemp("api"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ACCORD_REGISTRY", str(folder / "registry.sqlite"))
        accord.stages.demo(base_rows=60, sft_rows=24, preference_rows=16)
        accord.stages.base({"model": SMALL, "data": {"limit": 24}}, threads=1, training={"batch_size": 4})
        accord.stages.sft(**{"model.base_model": "base", "data.limit": 16, "training.batch_size": 4})
        accord.stages.reward(**{"training.batch_size": 4})
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("ACCORD_REGISTRY", str(place / "registry.sqlite"))


def test_every_kind_has_a_function() -> None:
    for kind, row in STAGE_KINDS.items():
        stage = getattr(accord.stages, kind)
        assert stage.settings is row.settings
        assert stage.config() == row.settings()
        assert inspect.isfunction(stage)
        assert (stage.__name__, f"Runs the stage {kind}: {row.help}." in stage.__doc__) == (kind, True)
        assert getattr(accord.stages, kind) is stage
    assert set(dir(accord.stages)) == set(STAGE_KINDS)
    with pytest.raises(AttributeError, match="has no 'stf'"):
        accord.stages.stf  # noqa: B018


def test_a_config_comes_from_anything(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({"seed": 3, "training": {"batch_size": 7, "num_epochs": 2}}))
    expected = STAGE_KINDS["sft"].settings.model_validate({"seed": 4, "training": {"batch_size": 9, "num_epochs": 2}})
    nested, dotted = {"training": {"batch_size": 9}}, {"training.batch_size": 9}
    for given in (path, str(path), {"seed": 3, "training": {"num_epochs": 2}}, {"training.num_epochs": 2}):
        assert accord.stages.sft.config(given, seed=4, **nested) == expected
        assert accord.stages.sft.config(given, seed=4, **dotted) == expected
    assert accord.stages.sft.config(expected) == expected
    with pytest.raises(UserError, match=r"unknown key 'training.batchsize'; did you mean 'training.batch_size'\?"):
        accord.stages.sft.config(training={"batchsize": 1})


def test_a_stage_gives_its_folder_and_figures(place: Path) -> None:
    outcome = accord.stages.sft(**{"model.base_model": "base", "data.limit": 16, "training.batch_size": 4})
    assert outcome.skipped  # nothing changed
    assert outcome.folder == Path("checkpoints/rlhf/sft")
    assert outcome.metrics["loss"] > 0
    other = accord.stages.sft(name="other", **{"model.base_model": "base", "data.limit": 8, "training.batch_size": 4})
    assert (other.skipped, other.folder.name) == (False, "other")


def test_a_loaded_model_generates(place: Path) -> None:
    model = accord.load("checkpoints/rlhf/sft")
    text = model.generate("what is red?", max_new_tokens=12)
    assert text == model.generate([{"role": "user", "content": "what is red?"}], max_new_tokens=12)  # the chat template
    assert text == accord.load("sft").generate("what is red?", max_new_tokens=12)  # by its name in the registry
    assert text == accord.load("checkpoints/rlhf/sft/model").generate("what is red?", max_new_tokens=12)
    assert len({model.generate("what is red?", 12, 1.0, 1.0, seed) for seed in range(5)}) > 1
    assert len({model.generate("what is red?", 12, 0.0, 1.0, seed) for seed in range(3)}) == 1
    assert model.backbone.width == 32
    assert model.tokenizer.vocab_size == model.backbone.vocab_size


def test_a_loaded_reward_model_scores(place: Path) -> None:
    from accord.data.chat import prompt_ids, reply_ids
    from accord.data.packing import pack_continuations

    reward = accord.load("checkpoints/rlhf/reward")
    prompts, replies = ["what is red?", "name a cat"], ["fire is.", "tom"]
    scores = reward.scores(prompts, replies)
    assert scores == pytest.approx([reward.score(p, r) for p, r in zip(prompts, replies, strict=True)], abs=1e-6)
    tokens = [
        [prompt_ids(reward.tokenizer, p) for p in prompts],
        [reply_ids(reward.tokenizer, p, r) for p, r in zip(prompts, replies, strict=True)],
    ]
    with torch.no_grad():
        expected = reward.model(*pack_continuations(*tokens))  # what training reads
    assert scores == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(UserError, match="2 prompts and 1 replies"):
        reward.scores(prompts, replies[:1])


def test_a_registered_model_is_an_input(place: Path) -> None:
    """NAME@ALIAS in a config: its content goes into the key, so the same model by its path changes nothing."""
    given = {"data.limit": 8, "training.batch_size": 4}
    first = accord.stages.dpo(name="byname", **{"model.base_model": "sft@latest", **given})
    assert (
        first.done["inputs"]["model.base_model"]
        == json.loads(Path("checkpoints/rlhf/sft/model/manifest.json").read_text())["digest"]
    )
    again = accord.stages.dpo(name="byname", **{"model.base_model": "checkpoints/rlhf/sft", **given})
    assert again.skipped
    for name in ("sft@nowhere", "stf@latest"):
        with pytest.raises(UserError, match=r"model.base_model: .*@"):
            accord.stages.dpo(name="byname", **{"model.base_model": name, **given})


def test_names_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="stf"):
        accord.load("stf")
    Path("empty").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="no language model here"):
        accord.load("empty")


def test_a_pipeline_runs_from_python(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("stages: { demo: { set: { base_rows: 60, sft_rows: 24, preference_rows: 16 } } }\n")
    results = accord.run(path, [f"out={tmp_path}/o", f"logs={tmp_path}/l"])
    assert results == json.loads((tmp_path / "o/results.json").read_text())
    assert list(results["stages"]) == ["demo"]
    path.write_text("stages: { base: { set: { data.train: nowhere.jsonl } } }\n")
    with pytest.raises(accord.UserError, match=r"nowhere\.jsonl"):
        accord.run(path, [f"out={tmp_path}/o", f"logs={tmp_path}/l"])
    path.write_text("stages: { demo: {}, base: { set: { model.base_model: transformer, model.d_model: 31 } } }\n")
    with pytest.raises(accord.Failed, match=r"^base failed: .*multiple of 32"):
        accord.run(path, [f"out={tmp_path}/o", f"logs={tmp_path}/l", "demo.base_rows=10"])


def test_importing_any_module_leaves_the_public_functions_callable(place: Path, tmp_path: Path) -> None:
    """A submodule that bore a public function's name would rebind it in the package when it is imported."""
    path = tmp_path / "p.yaml"
    path.write_text("stages: { demo: { set: { base_rows: 60, sft_rows: 24, preference_rows: 16 } } }\n")
    for _ in range(2):
        results = accord.run(path, [f"out={tmp_path}/o", f"logs={tmp_path}/l"])
        assert list(results["stages"]) == ["demo"]
        outcome = accord.stages.demo(
            base_rows=60, sft_rows=24, preference_rows=16, out=f"{tmp_path}/o", logs=f"{tmp_path}/l"
        )
        assert outcome.skipped
        for module in pkgutil.walk_packages(accord.__path__, "accord."):
            if not module.name.endswith("_triton"):
                importlib.import_module(module.name)
    submodules = {module.name for module in pkgutil.iter_modules(accord.__path__)}
    functions = {name for name in accord.__all__ if inspect.isfunction(getattr(accord, name))}
    assert functions == {"load", "open_backbone", "run"}
    assert not submodules & functions
