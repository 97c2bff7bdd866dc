"""accord.run, accord.load and accord.stages: what the command line does, from Python."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    with pytest.raises(AttributeError, match=r"has no 'stf'; the stages are demo, .*; did you mean 'sft'\?"):
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


def test_a_list_of_prompts_gives_a_list_of_replies_each_the_same_as_alone(place: Path) -> None:
    model = accord.load("checkpoints/rlhf/sft")
    turns = [{"role": "user", "content": "name a cat"}]
    replies = model.generate(["what is red?", turns, "what is red?"], 12, 1.0, 1.0, seed=3)
    assert replies[:2] == [model.generate(prompt, 12, 1.0, 1.0, seed=3) for prompt in ("what is red?", turns)]
    assert replies[2] != replies[0]  # another sample
    assert replies[2] == model.generate(["what is red?"] * 2, 12, 1.0, 1.0, seed=3)[1]
    assert model.generate(["what is red?"], 12) == [model.generate("what is red?", 12)]
    assert isinstance(model.generate(turns, 12), str)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (None, {}, "generate: the prompt is a text, or messages as .*; found None"),
        (3, {}, "generate: the prompt is a text, or messages as .*; found 3"),
        ([], {}, r"generate: the prompt is a text, or messages as .*; found \[\]"),
        ("a\ud800b", {}, "generate: the prompt is a text without lone surrogates"),
        ([{"role": "user", "content": "\udfff"}], {}, "generate: the prompt is messages without lone surrogates"),
        (b"text", {}, "generate: the prompt is a text, or messages as .*; found b'text'"),
        (["a", None], {}, "generate: prompt 1 is a text, or messages as .*; found None"),
        (["a", []], {}, r"generate: prompt 1 is a text, or messages as .*; found \[\]"),
        ([{"role": "user"}], {}, "generate: the prompt is a text, or messages as .*; found {'role': 'user'}"),
        (["a", [{"role": 1, "content": ""}]], {}, "generate: prompt 1 is a text, or messages as .*; found {'role': 1"),
        ("a", {"max_new_tokens": 0}, "generate: max_new_tokens: expected .*greater than or equal to 1, found 0"),
        ("a", {"max_new_tokens": -5}, "generate: max_new_tokens: .*found -5"),
        ("a", {"max_new_tokens": 1.5}, "generate: max_new_tokens: .*found 1.5"),
        ("a", {"temperature": math.nan}, "generate: temperature: expected a finite number, found nan"),
        ("a", {"temperature": -1}, "generate: temperature: .*found -1"),
        ("a", {"temperature": None}, "generate: temperature: "),
        ("a", {"temperature": math.inf}, "generate: temperature: expected a finite number, found inf"),
        ("a", {"top_p": 0}, "generate: top_p: .*found 0"),
        ("a", {"top_p": 1.1}, "generate: top_p: .*found 1.1"),
        ("a", {"seed": -1}, "generate: seed: .*found -1"),
        ("a", {"seed": 10**30}, "generate: seed: "),
        ("a", {"seed": "x"}, "generate: seed: .*found 'x'"),
    ],
)
def test_a_wrong_call_of_generate_is_a_sentence(
    prompt: Any, settings: dict[str, Any], message: str, world: Any
) -> None:
    with pytest.raises(UserError, match=message):
        accord.load(world.transformer).generate(prompt, **settings)


def test_a_wrong_call_of_a_reward_model_is_a_sentence(world: Any) -> None:
    reward, model = accord.load(world.reward), accord.load(world.transformer)
    with pytest.raises(
        UserError, match="is a reward model, which scores replies and writes none; give a language model"
    ):
        reward.generate(["a"], 5)
    for call in (lambda: model.score("a", "b"), lambda: model.scores(["a"], ["b"])):
        with pytest.raises(
            UserError, match="a language model, which writes replies and scores none; load a reward model"
        ):
            call()
    for prompts, replies, message in (
        ("a", "b", r"scores: prompts is a list; for one reply use score\(prompt, reply\); found 'a'"),
        (["a"], "b", "scores: replies is a list; .*found 'b'"),
        (["a"], [None], "scores: reply 0 is a text; found None"),
        (["a", 3], ["b", "c"], "scores: prompt 1 is a text, or messages as .*; found 3"),
        (None, ["b"], "scores: prompts is a list; .*found None"),
    ):
        with pytest.raises(UserError, match=message):
            reward.scores(prompts, replies)
    assert reward.scores([], []) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accord.load(None), "load: a model is a folder, a file or a name; found None"),
        (lambda: accord.load(""), "load: a model is a folder, a file or a name; found ''"),
        (lambda: accord.load("x" * 5000), "x…: no model can be opened here .File name too long"),
        (lambda: accord.load("sft", device=0), "load: device is auto, cpu, cuda, cuda:1 or mps; found 0"),
        (lambda: accord.load("sft", device="gpu"), "device: 'gpu' is no device"),
        (lambda: accord.run(None), "run: the pipeline is a YAML file's path; found None"),
        (lambda: accord.run("p.yaml", "seed=1"), r"run: overrides is a list of texts, as \['seed=1'\]; found 'seed=1'"),
        (lambda: accord.run("p.yaml", {"seed": 1}), "run: overrides is a list of texts"),
        (lambda: accord.run("p.yaml", [1]), r"run: overrides is a list of texts.*found \[1\]"),
        (lambda: accord.run("p.yaml", only="sft"), r"run: only is a list of texts, as \['sft'\]; found 'sft'"),
        (lambda: accord.run("p.yaml", jobs=0), "run: jobs is a whole number from 1; found 0"),
        (lambda: accord.run("p.yaml", jobs=True), "run: jobs is a whole number from 1; found True"),
        (
            lambda: accord.stages.sft(5),
            "sft: a config is a YAML file, a mapping of settings by name, or a config; found 5",
        ),
        (lambda: accord.stages.sft(["seed=1"]), "sft: a config is a YAML file, .*found .'seed=1'."),
        (lambda: accord.stages.sft({1: 2}), "sft: a config is a YAML file, .*found the keys 1"),
    ],
)
def test_a_wrong_call_is_a_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


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
