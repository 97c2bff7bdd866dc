"""A name of the hub wherever a model is named: pinned to a commit in key and manifest, downloaded before anything runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants as settings
import pytest
import yaml

from accord.api import LoadedModel, LoadedReward, load
from accord.cli import main
from accord.data.samples import Candidate, Sample
from accord.io.atomic import write_jsonl
from accord.models.hub import pinned_model
from tests.conftest import World
from tests.hub_server import NEW, OLD, Hub

REPO = Path(__file__).parents[2]
OUT = Path("checkpoints/rlhf")
FEW = ["device=cpu", "threads=1", "data.limit=4", "training.batch_size=4"]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def accord(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line as its own process would; the exit code and what it printed."""

    def run(*words: str) -> tuple[int, str]:
        pinned_model.cache_clear()
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def manifest(stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((OUT / stage / "model" / "manifest.json").read_text())
    return found


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


# ------------------------------------------------------------------ keys, manifests, lineage
def test_the_commit_is_in_config_manifest_and_lineage(model_hub: Hub, world: World, accord: Command) -> None:
    code, said = accord("sft", "model.base_model=org/tiny@v1", f"data.train={world.sft}", *FEW)
    assert code == 0, said
    assert "org/tiny: downloading bbbbbbbb from the Hugging Face hub" in said
    name = f"org/tiny@{OLD}"
    found = manifest("sft")
    assert (found["parents"]["model.base_model"], found["base"]) == (name, name)
    assert yaml.safe_load((OUT / "sft" / "config.yaml").read_text())["model"]["base_model"] == name
    assert json.loads((OUT / "sft" / "done.json").read_text())["inputs"]["model.base_model"] == name
    records = json.loads((OUT / "sft" / "model" / "lineage.json").read_text())["records"]
    assert {"name": "org/tiny", "kind": "model", "digest": name, "form": "model"} in records
    code, said = accord("models", "lineage", "sft")
    assert "org/tiny  model · bbbbbbbb" in said


def test_another_commit_runs_the_stage_again(model_hub: Hub, world: World, accord: Command) -> None:
    """And neither why nor --dry-run downloads weights to say so."""
    Path("p.yaml").write_text(
        yaml.safe_dump({"stages": {"sft": {"set": {
            "model.base_model": "org/tiny", "data.train": world.sft, "data.limit": 4, "training.batch_size": 4}}}})
    )  # fmt: skip
    code, said = accord("run", "p.yaml", "--dry-run")
    assert (code, "would run" in said) == (0, True), said
    assert not model_hub.downloaded
    assert accord("run", "p.yaml")[0] == 0
    assert "up to date" in accord("why", "sft", "p.yaml")[1]
    model_hub.refs["org/tiny"]["main"] = OLD
    model_hub.asked.clear()
    code, said = accord("why", "sft", "p.yaml")
    assert f"input model.base_model changed (org/tiny@{NEW} -> org/tiny@{OLD})" in " ".join(said.split())
    assert accord("run", "p.yaml", "--dry-run")[0] == 0
    assert not model_hub.downloaded
    assert accord("run", "p.yaml")[0] == 0
    assert manifest("sft")["parents"]["model.base_model"] == f"org/tiny@{OLD}"


def test_a_finished_stage_needs_no_connection(
    model_hub: Hub, world: World, accord: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sft", "model.base_model=org/tiny", f"data.train={world.sft}", *FEW)
    assert accord(*words)[0] == 0
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    code, said = accord(*words, "--resume")
    assert (code, "already done" in said) == (0, True), said


# ------------------------------------------------------------------ everywhere
def test_every_setting_that_names_a_model_takes_a_name_of_the_hub(
    model_hub: Hub, world: World, accord: Command
) -> None:
    """PPO with policy, reference and reward from there."""
    code, said = accord(
        *("ppo", "model.policy=language", "model.base_model=org/tiny", f"reference=org/tiny@{NEW}"),
        *(
            "reward.source=org/reward",
            f"prompts={world.prompts}",
            "sampling.max_new_tokens=4",
            "device=cpu",
            "threads=1",
        ),
        *("training.iterations=1", "training.replies=4", "training.batch_size=4", "training.num_epochs=1"),
    )
    assert code == 0, said
    named = {
        "model.base_model": f"org/tiny@{NEW}",
        "reference": f"org/tiny@{NEW}",
        "reward.source": f"org/reward@{NEW}",
    }
    assert named.items() <= manifest("ppo")["parents"].items()


def test_judge_compare_and_fuse_take_names_of_the_hub(model_hub: Hub, world: World, accord: Command) -> None:
    common = ("device=cpu", "threads=1")
    sampled = ("model.base_model=org/tiny", f"prompts={world.prompts}", "replies=2", "max_new_tokens=4")
    assert accord("sample", *sampled, *common)[0] == 0
    rows = [Sample(f"what is {i}?", (Candidate("fire is."), Candidate("no."))) for i in range(6)]
    write_jsonl(Path("samples.jsonl"), (row.as_row() for row in rows))
    code, said = accord("judge", "samples=samples.jsonl", "judge=org/reward", "heldout_fraction=0", *common)
    assert code == 0, said
    code, said = accord("compare", "reward_model=org/reward", f"pairs={world.preferences}", *common)
    assert code == 0, said
    assert "all pairs" in said
    code, said = accord("fuse", "models.a.model=org/tiny", f"models.b.model={world.mamba}", *common)
    assert code == 0, said
    assert manifest("fuse")["parents"]["models.0.model"] == f"org/tiny@{NEW}"


def test_chat_load_import_and_data_take_names_of_the_hub(
    model_hub: Hub, world: World, accord: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "")
    assert accord("chat", "org/tiny")[0] == 0
    assert isinstance(load("org/tiny@v1"), LoadedModel)
    assert isinstance(load("org/reward"), LoadedReward)
    assert accord("data", world.sft, "--model", "org/tiny")[0] == 0
    code, said = accord("models", "import", "org/tiny", "--name", "mine")
    assert code == 0, said
    assert f"org/tiny@{NEW}" in accord("models", "show", "mine", "--json")[1]
    assert accord("models", "lineage", "mine")[0] == 0
    assert accord("models", "export", "mine", "exported")[0] == 0
    assert isinstance(load("exported"), LoadedModel)


def test_what_accord_exported_is_imported_with_its_own_record(
    model_hub: Hub, world: World, accord: Command, tmp_path: Path
) -> None:
    assert accord("pretrained", "source=org/tiny@v1", "name=small")[0] == 0
    assert manifest("small")["parents"] == {"source": f"org/tiny@{OLD}"}
    assert accord("models", "export", "small", str(tmp_path / "exported"))[0] == 0
    model_hub.commits["org/tiny"]["c" * 40] = tmp_path / "exported"  # type: ignore[index]
    code, said = accord("models", "import", f"org/tiny@{'c' * 40}", "--name", "again")
    assert code == 0, said
    assert "again@1: pretrained" in said
    assert json.loads(accord("models", "show", "again", "--json")[1])["digest"] == manifest("small")["digest"]


# ------------------------------------------------------------------ what is not there
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("sft", "model.base_model=org/absent"),
            "accord: model.base_model: org/absent: no such folder here, and as a model",
        ),
        (("dpo", "model.base_model=org/absent@v1"), "`hf download org/absent --revision v1`"),
        (("ppo", "reward.source=org/absent"), "accord: reward.source: org/absent: no such folder here"),
        (("compare", "models.sft=org/absent"), "accord: models.sft: org/absent: no such folder here"),
        (("compare", "reward_model=org/absent", "pairs=demo"), "accord: reward_model: org/absent: no such folder"),
        (("fuse", "models.a.model=org/absent"), "accord: models.0.model: org/absent: no such folder here"),
        (("pretrained", "source=org/absent"), "accord: source: org/absent: no such folder here"),
        (("pretrained", "source=gpt2"), "accord: source: gpt2: no such folder here"),
        (("pretrained", "source=a/b/c"), "accord: source: a/b/c: no such folder or file, and not a model's name"),
        (("chat", "org/absent"), "accord: org/absent: no such folder here, and as a model of the Hugging Face hub"),
        (("models", "import", "org/absent"), "accord: org/absent: no such folder here, and as a model"),
        (("data", "rows.jsonl", "--model", "org/absent"), "accord: --model org/absent: no such folder here"),
        (("sft", "model.base_model=a/b/c"), "accord: model.base_model: 'a/b/c' does not exist; name a stage"),
    ],
)
def test_without_a_connection_it_is_one_sentence_before_a_file_is_touched(
    hub_cache: Path, accord: Command, words: tuple[str, ...], said: str
) -> None:
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    before = files()
    code, printed = accord(*words)
    assert code == 2
    assert said in printed
    assert printed.strip().count("\n") == 0
    assert files() == before


def test_a_download_that_fails_stops_a_run_before_its_first_stage(
    model_hub: Hub, world: World, accord: Command
) -> None:
    """The commit is known, the weights are no safetensors: nothing is made for it."""
    before = files()
    code, said = accord("ppo", "model.policy=language", "reward.source=org/pickled", f"prompts={world.prompts}")
    assert code == 2
    assert "reward.source: org/pickled@" in said
    assert "only weights as safetensors are read" in said
    assert files() == before
    Path("p.yaml").write_text(
        "stages:\n  demo: {}\n  sft: { set: { model.base_model: org/pickled }, inputs: { data.train: demo } }\n"
    )
    code, said = accord("run", "p.yaml")
    assert (code, "only weights as safetensors are read" in said) == (2, True), said
    assert not OUT.exists()


def test_a_folder_of_that_name_is_taken(model_hub: Hub, world: World, accord: Command) -> None:
    Path("org").mkdir()
    Path("org/tiny").symlink_to(world.transformer)
    assert accord("sft", "model.base_model=org/tiny", f"data.train={world.sft}", *FEW)[0] == 0
    assert "@" not in manifest("sft")["base"]
    assert not model_hub.asked


# ------------------------------------------------------------------ a process of its own
def test_the_environment_says_where_hub_and_cache_are(model_hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME, then HF_HUB_OFFLINE."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": model_hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(REPO),
    }
    environment |= {"HF_HUB_OFFLINE": "0", "ACCORD_REGISTRY": str(tmp_path / "registry.sqlite")}
    words = [sys.executable, "-m", "accord", "pretrained", "source=org/tiny", "device=cpu", "threads=1"]
    found = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    snapshot = tmp_path / "home" / "hub" / "models--org--tiny" / "snapshots" / NEW
    assert (snapshot / "model.safetensors").is_file()
    assert manifest("pretrained")["parents"] == {"source": f"org/tiny@{NEW}"}
    asked = len(model_hub.asked)
    environment |= {"HF_HUB_OFFLINE": "1"}
    again = subprocess.run([*words, "name=again"], env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(model_hub.asked) == asked
    assert manifest("again")["digest"] == manifest("pretrained")["digest"]
