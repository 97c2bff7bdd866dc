"""A pipeline on a world of a few rows and a model of a few thousand weights: what runs, what is kept, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.cli import main
from accord.errors import UserError
from accord.pipeline.orchestrator import plan, run_pipeline

REPO = Path(__file__).parents[2]
STAGES = """
seed: 0
threads: 1
stages:
  demo: { set: { base_rows: 200, sft_rows: 48, preference_rows: 24, heldout_base_rows: 16, heldout_sft_rows: 16 } }
  base:
    config: base.yaml
    inputs: { data.train: demo }
    set: { model.d_model: 32, model.n_layers: 1 }
  sft:
    inputs: { model.base_model: base, data.train: demo }
    set: { data.limit: 32, training.batch_size: 16 }
  pairs:
    inputs: { model.base_model: sft, prompts: demo }
    set: { replies: 4, pairs: 2, limit: 40, heldout_fraction: 0.3 }
  reward:
    inputs: { model.base_model: sft, data.train: demo }
    set: { model.input_dim: 32, model.hidden_dim: 16, training.batch_size: 8 }
  dpo:
    inputs: { model.base_model: sft, data.train: pairs, data.heldout: pairs }
    set: { data.limit: 8 }
  heads:
    kind: ppo
    inputs: { model.base_model: sft, reward.source: reward, prompts: demo }
    set: { model.obs_dim: 32, model.hidden_dim: 16, training.total_timesteps: 32, training.num_epochs: 1 }
  ppo_lm:
    kind: ppo
    inputs: { model.base_model: sft, reward.source: reward, prompts: demo }
    set:
      model.policy: language
      sampling.max_new_tokens: 8
      training: { iterations: 1, replies: 8, batch_size: 8, num_epochs: 1 }
  compare:
    inputs: { reference: sft, base: base, reward_model: reward, pairs: pairs, prompts: demo }
    set: { models: { sft: sft, ppo: ppo_lm, dpo: dpo }, max_new_tokens: 8, replies: 2, limit: 8, samples: 2 }
"""
BASE = "model: { base_model: transformer }\ndata: { limit: 48 }\ntraining: { batch_size: 16 }\n"
NAMES = ["demo", "base", "sft", "pairs", "reward", "dpo", "heads", "ppo_lm", "compare"]
DIGESTED = ["base", "sft", "reward", "dpo", "ppo_lm"]  # those that leave a model folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_pipeline(folder: Path, stages: str = STAGES) -> Path:
    (folder / "base.yaml").write_text(BASE)
    path = folder / "pipeline.yaml"
    path.write_text(stages)
    return path


def run(path: Path, root: Path, *overrides: str) -> dict[str, Any]:
    return run_pipeline(path, [f"out={root}/out", f"logs={root}/logs", *overrides])


def done(root: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((root / "out" / name / "done.json").read_text()))


def stamps(root: Path) -> dict[str, int]:
    """When each stage was last done: changes where, and only where, it ran again."""
    return {name: (root / "out" / name / "done.json").stat().st_mtime_ns for name in NAMES}


def digests(root: Path) -> dict[str, str]:
    return {
        name: json.loads((root / "out" / name / "model" / "manifest.json").read_text())["digest"]
        for name in DIGESTED
        if (root / "out" / name / "model").exists()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline that has run."""
    root = tmp_path_factory.mktemp("pipeline")
    run(write_pipeline(root), root)
    return root


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """The same, elsewhere, to be changed."""
    shutil.copytree(world, tmp_path / "copy")
    return tmp_path / "copy"


# ------------------------------------------------------------------ what comes out
def test_results_hold_what_is_to_be_measured(world: Path) -> None:
    results = json.loads((world / "out" / "results.json").read_text())
    asked = {"gold_mean", "gold_ci95", "kl_mean", "length_mean", "eos_rate", "win_rate_vs_sft", "win_rate_ci95"}
    for name in ("sft", "ppo", "dpo"):
        assert asked <= results[name].keys(), name
        low, high = results[name]["gold_ci95"]
        assert low <= results[name]["gold_mean"] <= high
        low, high = results[name]["win_rate_ci95"]
        assert 0 <= low <= results[name]["win_rate_vs_sft"] <= high <= 1
        assert 0 <= results[name]["eos_rate"] <= 1
        assert 1 <= results[name]["length_mean"] <= 8
        assert results[name]["base_nll"] > 0
        assert isinstance(results[name]["proxy_mean"], float)
    assert results["sft"]["kl_mean"] == pytest.approx(0, abs=1e-5)
    assert results["sft"]["win_rate_vs_sft"] == 0.5
    assert {"heldout_accuracy", "gold_agreement", "n_heldout"} <= results["reward"].keys()
    heldout = (world / "out" / "pairs" / "heldout_preferences.jsonl").read_text().splitlines()
    assert results["reward"]["n_heldout"] == len(heldout) > 0
    assert list(results["stages"]) == NAMES
    for name, took in results["stages"].items():
        assert took.keys() == {"seconds", "peak_rss_mb"}
        assert took == {key: done(world, name)[key] for key in took}
    assert results["seed"] == 0
    assert results["versions"].keys() == {"accord", "torch", "python"}


def test_every_stage_leaves_config_record_and_log(world: Path) -> None:
    for name in NAMES:
        assert (world / "out" / name / "config.yaml").exists()
        assert (world / "logs" / name / f"{name}.log").stat().st_size > 0
        assert not (world / "out" / name / "state.pt").exists()
    kinds = {name: done(world, name)["kind"] for name in NAMES}
    assert kinds == {**{n: n for n in NAMES}, "heads": "ppo", "ppo_lm": "ppo"}


def test_lineage_is_by_content(world: Path) -> None:
    made = digests(world)
    assert done(world, "sft")["inputs"]["model.base_model"] == made["base"]
    assert done(world, "compare")["inputs"]["models.ppo"] == made["ppo_lm"]
    assert done(world, "heads")["inputs"]["reward.source"] == made["reward"]
    manifest = json.loads((world / "out" / "dpo" / "model" / "manifest.json").read_text())
    assert manifest["parents"] == done(world, "dpo")["inputs"]
    assert manifest["key"] == done(world, "dpo")["key"]


# ------------------------------------------------------------------ again
def test_a_second_run_keeps_everything_and_shows_the_table(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, results = stamps(world), (world / "out" / "results.json").read_text()
    started = time.process_time()
    code = main(["run", str(world / "pipeline.yaml"), f"out={world}/out", f"logs={world}/logs"])
    assert time.process_time() - started < 1.0
    assert code == 0
    assert stamps(world) == before
    assert (world / "out" / "results.json").read_text() == results
    shown = capsys.readouterr().out
    assert shown.count("unchanged, kept") == len(NAMES)
    assert "win rate vs SFT" in shown
    assert "held-out pairs" in shown


def test_a_moved_project_is_still_done(copy: Path) -> None:
    """Keys hold contents, no paths; what changes no results changes no key."""
    before = stamps(copy)
    run(copy / "pipeline.yaml", copy, "device=cpu", "sft.log_every=1", "dpo.save_every=7")
    assert stamps(copy) == before


def test_a_changed_setting_reruns_its_stage_and_what_depends_on_it(copy: Path) -> None:
    before, made = stamps(copy), digests(copy)
    run(copy / "pipeline.yaml", copy, "dpo.training.beta=0.5", "dpo.training.learning_rate=1e-2")
    after = stamps(copy)
    assert {name for name in NAMES if after[name] != before[name]} == {"dpo", "compare"}
    assert {name for name in made if digests(copy)[name] != made[name]} == {"dpo"}
    assert "beta: 0.5" in (copy / "out" / "dpo" / "config.yaml").read_text()
    run(copy / "pipeline.yaml", copy)  # and back
    assert digests(copy) == made


def test_a_setting_that_does_not_reach_the_weights_stops_there(copy: Path) -> None:
    """micro_batch_size is among the settings, and DPO runs again; 4 rows in one pass are the same weights as 4 in one
    pass, so what depends on it is left alone."""
    before = stamps(copy)
    run(copy / "pipeline.yaml", copy, "dpo.training.micro_batch_size=4")
    after = stamps(copy)
    assert {name for name in NAMES if after[name] != before[name]} == {"dpo"}


def test_changed_data_reruns_what_reads_it(copy: Path) -> None:
    before = stamps(copy)
    rows = copy / "out" / "pairs" / "heldout_preferences.jsonl"
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[0] + "\n")
    run(copy / "pipeline.yaml", copy)
    after = stamps(copy)
    assert {name for name in NAMES if after[name] != before[name]} == {"dpo", "compare"}


def test_another_seed_reruns_everything(world: Path, tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, STAGES[: STAGES.index("  pairs:")])
    run(path, tmp_path, "seed=1", "base.seed=0")
    assert digests(tmp_path)["base"] != digests(world)["base"]
    assert "seed: 1" in (tmp_path / "out" / "sft" / "config.yaml").read_text()
    assert "seed: 0" in (tmp_path / "out" / "base" / "config.yaml").read_text()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results.keys() == {"stages", "seed", "versions"}  # nothing was compared
    assert results["seed"] == 1


# ------------------------------------------------------------------ a stage that fails
def test_a_stage_that_fails_leaves_the_earlier_ones(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_pipeline(tmp_path, STAGES[: STAGES.index("  pairs:")])
    where = [f"out={tmp_path}/out", f"logs={tmp_path}/logs"]
    diverges = ["sft.training.learning_rate=10", "sft.training.weight_decay=1e6"]
    assert main(["run", str(path), *where, *diverges, "sft.data.limit=48"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("accord: sft failed: step ")
    assert "not finite" in said
    assert said.count("\n") == 1
    assert done(tmp_path, "base")["kind"] == "base"
    assert not (tmp_path / "out" / "sft" / "done.json").exists()
    assert not (tmp_path / "out" / "results.json").exists()
    assert main(["run", str(path), *where]) == 0
    assert "✓ base: unchanged, kept" in capsys.readouterr().out
    assert digests(tmp_path) == {name: digests(world)[name] for name in ("base", "sft")}


# ------------------------------------------------------------------ Ctrl-C
def test_after_ctrl_c_a_second_run_ends_as_if_uninterrupted(tmp_path: Path) -> None:
    """SIGINT in the middle of SFT: exit 130 and how to resume; run again, base is kept, SFT resumes from its
    step, and its weights are those of a run that was left alone."""
    stages = STAGES[: STAGES.index("  pairs:")]
    path = write_pipeline(tmp_path, stages.replace("data.limit: 32, training.batch_size: 16", "data.limit: 48"))
    more = ["sft.training.num_epochs=14", "sft.log_every=1", "sft.save_every=1000"]  # 168 steps
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(path, whole, *more)

    words = ["run", str(path), f"out={cut}/out", f"logs={cut}/logs", *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "accord.cli", *words]
    child = subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = cut / "logs" / "sft" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.read_text().count("\n") > 20):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "stopping after this step; press again to stop at once" in out
    assert err.startswith("accord: sft: stopped at step ")
    assert err.endswith(" of 168; the state is saved. Run the same command again to resume.\n")
    at = int(err.split("step ")[1].split(" ")[0])
    assert 20 <= at < 168
    assert (cut / "out" / "sft" / "state.pt").exists()
    assert not (cut / "out" / "sft" / "done.json").exists()
    base = done(cut, "base")

    run(path, cut, *more)
    assert done(cut, "base") == base
    assert digests(cut) == digests(whole)
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in steps if "learning_rate" in row] == list(range(1, 169))  # none twice, none missing
    whole_steps = [json.loads(line) for line in (whole / "logs" / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert steps == whole_steps


# ------------------------------------------------------------------ mistakes, before anything runs
def refused(tmp_path: Path, stages: str, *overrides: str) -> str:
    path = write_pipeline(tmp_path, f"out: {tmp_path}/out\nlogs: {tmp_path}/logs\n{stages}")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError) as caught:
        run_pipeline(path, list(overrides))
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            "stages:\n  demo: {}\n  base:\n    inputs:\n      data.train: dmo\n",
            "/pipeline.yaml line 7, stage 'base': inputs.data.train is 'dmo', which is not another stage; did you mean 'demo'?",
        ),
        (
            "stages:\n  demo: {}\n  base: { inputs: { data.train: sft } }\n  sft: { inputs: { model.base_model: base } }\n",
            "/pipeline.yaml: 'base' takes 'sft' takes 'base'; stages cannot depend on each other in a cycle: change the input"
            " of one of them.",
        ),
        (
            "stages:\n  demo: {}\n  sft: { kind: dpo }\n",
            "/pipeline.yaml: 'sft' takes 'sft'; stages cannot depend on each other in a cycle: change the input of one of them.",
        ),
        (
            "stages:\n  demo: {}\n  base: { inputs: { data.train: base } }\n",
            "/pipeline.yaml line 5, stage 'base': inputs.data.train is 'base', which is not another stage; the others are"
            " demo.",
        ),
        (
            "stages:\n  demo: {}\n  base: {}\n  sft: { inputs: { model.base_model: base } }\n"
            "  compare: { set: { models: { sft: sft, ppo: ppo_ml } } }\n",
            "/pipeline.yaml, stage 'compare': models.ppo: 'ppo_ml' does not exist; name a stage (demo, base, sft), a folder"
            " or a file.",
        ),
        (
            "stages:\n  demo: {}\n  base: {}\n  sft: { set: { model.base_model: bse } }\n",
            "/pipeline.yaml, stage 'sft': model.base_model: 'bse' does not exist; did you mean 'base'?",
        ),
        (
            "stages:\n  demo: {}\n  base: {}\n  sft: { set: { model.base_model: base, data.train: my.jsonl } }\n",
            "/pipeline.yaml, stage 'sft': data.train: 'my.jsonl' does not exist; name a stage (demo, base), a folder or a"
            " file.",
        ),
        (
            "stages:\n  demo: {}\n  sft: {}\n",
            "/pipeline.yaml, stage 'sft': model.base_model: 'mamba' does not exist; put a stage of kind 'base' before this"
            " one and name that.",
        ),
        ("stages:\n  dmo: {}\n", "/pipeline.yaml, stage 'dmo': unknown kind 'dmo'; did you mean 'demo'?"),
        (
            "stages:\n  small: { kind: dem }\n",
            "/pipeline.yaml line 4, stage 'small': unknown kind 'dem'; did you mean 'demo'?",
        ),
        ("stages:\n  demo: { config: bas.yaml }\n", "/bas.yaml: no such config file; did you mean 'base.yaml'?"),
        ("stages:\n  demo: { config: base.yaml }\n", None),
        (
            "stages:\n  demo: {}\n  base:\n    set:\n      trainin.batch_size: 3\n",
            "/pipeline.yaml line 7, stage 'base': unknown key 'trainin'; did you mean 'training'?",
        ),
        (
            "stages:\n  demo: {}\n  base: { inputs: { data.trian: demo } }\n",
            "/pipeline.yaml line 5, stage 'base': unknown key 'data.trian'; did you mean 'data.train'?",
        ),
        (
            "stages:\n  demo: {}\n  base:\n    set: { training.batch_size: none }\n",
            "/pipeline.yaml line 6, stage 'base': training.batch_size: expected a whole number, without point"
            " and exponent, found 'none'.",
        ),
        (
            "stages:\n  demo: { inpts: {} }\n",
            "/pipeline.yaml line 4: unknown key 'stages.demo.inpts'; did you mean 'stages.demo.inputs'?",
        ),
        ("stges:\n  demo: {}\n", None),
        (
            "stages:\n  demo:\n",
            "/pipeline.yaml line 4: stages.demo: expected 'key: value' lines below it, found nothing.",
        ),
        ("stages: {}\n", "/pipeline.yaml: no stages; write at least one under 'stages:'."),
        ("seed: 3\n", "/pipeline.yaml: the required key 'stages' is missing."),
        (
            "stages:\n  demo: { set: { out: elsewhere } }\n",
            "/pipeline.yaml line 4, stage 'demo': 'out' is set by the pipeline, not by a stage; a stage's folder is"
            " <out>/<stage>.",
        ),
        (
            "stages:\n  a/b: { kind: demo }\n",
            "/pipeline.yaml, stage 'a/b': a stage's name is its folder's; use letters, digits, _ and - only.",
        ),
        (
            "stages:\n  demo: { set: { seed.x: 1 } }\n",
            "/pipeline.yaml line 4, stage 'demo': 'seed.x' cannot be set: 'seed' is the value 0, not a section.",
        ),
    ],
)
def test_mistakes_are_reported_before_anything_runs(tmp_path: Path, stages: str, message: str | None) -> None:
    if message is None:
        with pytest.raises(UserError, match=r"unknown key|needed and absent"):
            plan(write_pipeline(tmp_path, stages))
    else:
        assert refused(tmp_path, stages) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bse.seed=1", "override 'bse.seed=1': /pipeline.yaml has no stage or setting 'bse'; did you mean 'base'?"),
        ("sede=1", "override 'sede=1': /pipeline.yaml has no stage or setting 'sede'; did you mean 'seed'?"),
        ("base=1", "override 'base=1': name the setting too, as in base.seed=1."),
        (
            "base.training.batchsize=1",
            "override 'base.training.batchsize=1': unknown key 'training.batchsize'; did you mean 'training.batch_size'?",
        ),
        (
            "base.name=x",
            "override 'base.name=x': 'name' is set by the pipeline, not by a stage; a stage's folder is <out>/<stage>.",
        ),
        (
            "seed=one",
            "override 'seed=one': seed: expected a whole number, without point and exponent, found 'one'.",
        ),
    ],
)
def test_mistakes_in_overrides_are_reported(tmp_path: Path, override: str, message: str) -> None:
    assert refused(tmp_path, "stages: { demo: {}, base: {} }\n", override) == message


# ------------------------------------------------------------------ planning
def test_a_plan_puts_file_settings_inputs_and_overrides_together(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path)
    overrides = ["seed=4", "base.training.batch_size=3", "base.seed=9", "logs=l"]
    pipeline, planned = plan(path, overrides)
    assert (pipeline.seed, pipeline.threads) == (4, 1)
    assert [p.name for p in planned] == NAMES
    base = planned[1].config.model_dump()
    assert base["model"]["base_model"] == "transformer"  # the stage's file
    assert base["model"]["d_model"] == 32  # set
    assert base["training"]["batch_size"] == 3  # the override beats the file
    assert base["training"]["learning_rate"] == 3e-3  # the default of the stage
    assert (base["data"]["train"], base["data"]["limit"]) == ("demo", 48)
    assert (base["seed"], base["threads"], base["logs"], base["name"]) == (9, 1, "l", "base")
    assert [p.config.seed for p in planned[2:]] == [4] * 7
    assert planned[6].kind == planned[7].kind == "ppo"


def test_a_stages_own_seed_beats_the_pipelines(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, "seed: 5\nthreads: 2\nstages: { demo: {}, base: { config: base.yaml } }\n")
    (tmp_path / "base.yaml").write_text("seed: 3\nthreads: 1\nout: elsewhere\nname: other\n")
    _, planned = plan(path)
    base = planned[1].config
    assert (planned[0].config.seed, base.seed, base.threads) == (5, 3, 1)
    assert (base.out, base.name) == ("checkpoints/rlhf", "base")  # a stage's folder is the pipeline's to choose
