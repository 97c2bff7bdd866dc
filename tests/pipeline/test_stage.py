"""One stage: its key, when it is done, and how it resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from accord.config.common import Stage
from accord.config.load import load
from accord.config.section import digest
from accord.config.sft import SFTConfig
from accord.errors import Failed, Interrupted, UserError
from accord.pipeline.records import read_done
from accord.pipeline.stage import run_stage
from accord.pipeline.suited import suited
from accord.pipeline.task import bare, parents, stage_key
from accord.registry.manifest import publish
from accord.registry.store import open_store
from accord.runtime.run import Run
from accord.stage_kinds.table import STAGE_KINDS

Train = Callable[[Any, Run], dict[str, float]]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture
def make(tmp_path: Path, rows: Path, model: Path) -> Callable[..., SFTConfig]:
    """A resolved config, as the pipeline hands it over."""

    def made(*overrides: str) -> SFTConfig:
        given = [f"out={tmp_path}/out", f"logs={tmp_path}/logs", f"data.train={rows}", f"model.base_model={model}"]
        return load(SFTConfig, None, [*given, *overrides])

    return made


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> Callable[[Train], None]:
    """Puts a function in the place of SFT's training."""

    def put(train: Train) -> None:
        module = ModuleType("stage_of_the_tests")
        module.train = train  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "stage_of_the_tests", module)
        row = replace(STAGE_KINDS["sft"], function_path="stage_of_the_tests:train", version=1)
        monkeypatch.setitem(STAGE_KINDS, "sft", row)

    return put


def key(config: Stage) -> str:
    return stage_key("sft", config, parents("sft", config))


# ------------------------------------------------------------------ keys
@pytest.mark.parametrize(
    "override", ["out=x", "logs=x", "device=cpu", "log_every=1", "save_every=1", "threads=1", "name=x"]
)
def test_what_does_not_change_results_does_not_change_the_key(make: Callable[..., SFTConfig], override: str) -> None:
    assert key(make(override)) == key(make())


def test_what_changes_results_changes_the_key(make: Callable[..., SFTConfig]) -> None:
    overrides = ["training.learning_rate=0.5", "seed=1", "data.limit=3", "model.max_length=99", "precision=bfloat16"]
    keys = [key(make(o)) for o in overrides]
    assert len({key(make()), *keys}) == 1 + len(overrides)


def test_a_retired_setting_counts_in_the_key_with_its_default(make: Callable[..., SFTConfig]) -> None:
    """So that what was made while the setting was there need not run again."""
    config = suited("sft", make()).config
    inputs = parents("sft", config)
    values = bare(config, inputs)
    assert "max_prompt_length" not in values["model"]
    values["model"]["max_prompt_length"] = 0
    assert key(config) == digest(["sft", STAGE_KINDS["sft"].version, values, inputs])


def test_inputs_count_by_content_and_not_by_name_or_time(
    make: Callable[..., SFTConfig], rows: Path, model: Path, tmp_path: Path
) -> None:
    before = key(make())
    os.utime(rows, (1, 1))
    os.utime(model / "config.json", (1, 1))
    assert key(make()) == before
    shutil.copy(rows, tmp_path / "copy.jsonl")
    shutil.copytree(model, tmp_path / "moved")
    assert key(make(f"data.train={tmp_path}/copy.jsonl", f"model.base_model={tmp_path}/moved")) == before
    rows.write_text('{"prompt": "a", "completion": "c"}\n')
    changed = key(make())
    assert changed != before
    (model / "config.json").write_text("{ }")
    assert key(make()) not in (before, changed)


def test_the_same_bytes_in_another_role_are_another_key(tmp_path: Path) -> None:
    """Train and held-out rows exchanged: the same two digests, and another stage."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(name)
    keys = set()
    for train, heldout in (("a", "b"), ("b", "a")):
        overrides = [f"data.train={tmp_path}/{train}.jsonl", f"data.heldout={tmp_path}/{heldout}.jsonl"]
        config = load(STAGE_KINDS["dpo"].settings, None, ["model.base_model=m:f", *overrides])
        keys.add(stage_key("dpo", config, parents("dpo", config)))
    assert len(keys) == 2


def test_kind_and_version_are_in_the_key(make: Callable[..., SFTConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    before, config = key(make()), make()
    assert stage_key("base", config, parents("sft", config)) != before
    row = STAGE_KINDS["sft"]
    monkeypatch.setitem(STAGE_KINDS, "sft", replace(row, version=row.version + 1))
    assert key(make()) != before


def test_functions_and_ids_count_by_name(make: Callable[..., SFTConfig]) -> None:
    config = load(STAGE_KINDS["ppo"].settings, None, ["reward.source=m:f", "model.base_model=org/name", "prompts=m:f"])
    assert parents("ppo", config) == {"reward.source": "m:f", "model.base_model": "org/name", "prompts": "m:f"}


# ------------------------------------------------------------------ running
def test_a_stage_leaves_its_record(make: Callable[..., SFTConfig], trains: Callable[[Train], None]) -> None:
    def train(config: SFTConfig, run: Run) -> dict[str, float]:
        assert run.key == key(config)
        assert run.parents == parents("sft", config)
        assert not run.resume
        run.open_folders()
        (run.directory / "state.pt").write_text("")
        return {"loss": 0.5}

    trains(train)
    config = make("seed=3")
    outcome = run_stage("sft", config, resume=False, reuse=False)
    directory = Path(config.out) / "sft"
    done = json.loads((directory / "done.json").read_text())
    assert outcome.done == done == read_done(directory)
    assert (outcome.name, outcome.skipped) == ("sft", False)
    assert done["kind"] == "sft"
    assert done["key"] == key(config)
    assert done["inputs"].keys() == {"model.base_model", "data.train"}
    assert done["metrics"] == {"loss": 0.5}
    assert done["seconds"] >= 0
    assert 30 < done["peak_rss_mb"] < 50_000
    assert load(SFTConfig, directory / "config.yaml") == suited("sft", config).config
    assert sorted(p.name for p in directory.iterdir()) == ["config.yaml", "done.json"]  # no state: nothing to resume
    assert (Path(config.logs) / "sft" / "sft.log").exists()


def test_a_stage_is_named_and_put_in_its_folder(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None]
) -> None:
    trains(lambda config, run: {})
    config = make("name=other")
    assert run_stage("sft", config, resume=False, reuse=False).name == "other"
    assert (Path(config.out) / "other" / "done.json").exists()
    assert (Path(config.logs) / "other" / "other.log").exists()


def test_a_finished_stage_is_reused_unless_asked_not_to(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None]
) -> None:
    runs: list[int] = []
    trains(lambda config, run: {"n": float(len(runs)), "_": float(runs.append(1) is None)})
    first = run_stage("sft", make(), resume=True, reuse=True)
    again = run_stage("sft", make("log_every=1"), resume=True, reuse=True)
    assert (first.skipped, again.skipped) == (False, True)
    assert again.done == first.done
    assert run_stage("sft", make(), resume=True, reuse=False).skipped  # --resume of what is done does not redo it
    assert len(runs) == 1
    assert not run_stage("sft", make(), resume=False, reuse=False).skipped  # asked to run again
    assert not run_stage("sft", make("seed=1"), resume=True, reuse=True).skipped
    assert run_stage("sft", make(), resume=True, reuse=True).skipped  # put aside for seed 1, and taken back
    assert len(runs) == 3


def test_a_record_that_is_not_whole_is_named_and_its_folder_left(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None]
) -> None:
    trains(lambda config, run: {})
    config = make()
    run_stage("sft", config, resume=True, reuse=True)
    done = Path(config.out) / "sft" / "done.json"
    done.write_text('{"key": "')
    with pytest.raises(UserError, match=r"done\.json: .* restore it, or remove it to run this stage again"):
        run_stage("sft", config, resume=True, reuse=True)
    assert done.read_text() == '{"key": "'
    done.unlink()
    assert not run_stage("sft", config, resume=True, reuse=True).skipped


class Interruptible:
    """Counts to three, is stopped after its second step, and resumes from there."""

    def __init__(self) -> None:
        self.began: list[tuple[int, bool]] = []
        self.stops = True

    def __call__(self, config: SFTConfig, run: Run) -> dict[str, float]:
        state = run.directory / "state.pt"
        step = int(state.read_text()) if run.resume and state.exists() else 0
        self.began.append((step, run.resume))
        run.begin(3, step)
        while run.step < 3:
            run.tick({"loss": 0.0})
            state.write_text(str(run.step))
            if self.stops and run.step == 2:
                signal.raise_signal(signal.SIGINT)
            run.check_stop()
        return {}


def test_a_stopped_stage_resumes(make: Callable[..., SFTConfig], trains: Callable[[Train], None]) -> None:
    train = Interruptible()
    trains(train)
    with pytest.raises(Interrupted, match="sft: stopped at step 2 of 3"):
        run_stage("sft", make(), resume=False, reuse=False)
    assert read_done(Path(make().out) / "sft") == {}
    train.stops = False
    assert not run_stage("sft", make("log_every=1"), resume=True, reuse=True).skipped
    assert train.began == [(0, False), (2, True)]


def test_without_resume_a_stage_starts_from_the_beginning(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None]
) -> None:
    train = Interruptible()
    trains(train)
    with pytest.raises(Interrupted):
        run_stage("sft", make(), resume=False, reuse=False)
    train.stops = False
    run_stage("sft", make(), resume=False, reuse=False)
    assert train.began == [(0, False), (0, False)]


def test_resuming_with_other_settings_is_refused(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None]
) -> None:
    train = Interruptible()
    trains(train)
    with pytest.raises(Interrupted):
        run_stage("sft", make(), resume=False, reuse=False)
    train.stops = False
    with pytest.raises(UserError, match="the saved state has other settings or inputs; run without --resume"):
        run_stage("sft", make("training.learning_rate=0.5"), resume=True, reuse=False)
    assert train.began == [(0, False)]
    run_stage("sft", make(), resume=True, reuse=False)  # and the state is still good for its own settings
    assert train.began == [(0, False), (2, True)]


def test_a_pipeline_with_other_settings_starts_from_the_beginning(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None]
) -> None:
    train = Interruptible()
    trains(train)
    with pytest.raises(Interrupted):
        run_stage("sft", make(), resume=True, reuse=True)
    with pytest.raises(Interrupted):
        run_stage("sft", make("training.learning_rate=0.5"), resume=True, reuse=True)
    assert train.began == [(0, False), (0, False)]
    train.stops = False
    run_stage("sft", make("training.learning_rate=0.5"), resume=True, reuse=True)  # and these resume as well
    assert train.began[2:] == [(2, True)]


def test_rerunning_removes_the_old_record_first(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None]
) -> None:
    """Otherwise a rerun that fails would leave an old record beside new files."""
    trains(lambda config, run: {})
    run_stage("sft", make(), resume=True, reuse=True)

    def fails(config: SFTConfig, run: Run) -> dict[str, float]:
        run.open_folders()
        raise UserError("loss: not finite")

    trains(fails)
    with pytest.raises(UserError, match="not finite"):
        run_stage("sft", make("seed=1"), resume=True, reuse=True)
    assert read_done(Path(make().out) / "sft") == {}


def test_a_stop_after_the_last_step_still_interrupts(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None]
) -> None:
    """Ctrl-C while a stage writes its last file: the stage is done, and the next one does not begin."""

    def train(config: SFTConfig, run: Run) -> dict[str, float]:
        run.open_folders()
        signal.raise_signal(signal.SIGINT)
        return {"loss": 1.0}

    trains(train)
    with pytest.raises(Interrupted, match="it is done"):
        run_stage("sft", make(), resume=True, reuse=True)
    assert run_stage("sft", make(), resume=True, reuse=True).skipped


def test_folders_that_cannot_be_made_are_named(make: Callable[..., SFTConfig], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for setting in ("out", "logs"):
        with pytest.raises(UserError, match=r"file/x/sft: cannot be created \(Not a directory\); choose another"):
            run_stage("sft", make(f"{setting}={tmp_path}/file/x"), resume=False, reuse=False)


def test_a_stage_runs_with_its_number_of_threads(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None]
) -> None:
    before, found = torch.get_num_threads(), []

    def train(config: SFTConfig, run: Run) -> dict[str, float]:
        found.append(torch.get_num_threads())
        return {"loss": 1.0}

    trains(train)
    try:
        run_stage("sft", make("threads=3"), resume=False, reuse=False)
    finally:
        torch.set_num_threads(before)
    assert found == [3]


def publish_model(run: Run) -> None:
    publish(run.directory / "model", lambda folder: (folder / "config.json").touch(), {"name": run.name, "kind": "sft"})


def test_what_is_optional_is_written_after_the_record_and_may_fail(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = tmp_path / "out" / "sft" / "done.json"
    seen: list[bool] = []

    def train(config: SFTConfig, run: Run) -> dict[str, float]:
        run.begin(1)
        run.write_later("curve.png", lambda: seen.append(done.exists()))
        run.write_later("episode.gif", lambda: 1 / 0)
        publish_model(run)
        return {"loss": float("nan")}

    def refuses(*_: object, **__: object) -> None:
        seen.append(done.exists())
        raise UserError("registry.sqlite: the registry is read-only")

    monkeypatch.setattr("accord.registry.store.Store.add", refuses)
    trains(train)
    outcome = run_stage("sft", make(), resume=False, reuse=False)
    assert seen == [True, True]
    assert repr(outcome.metrics) == "{'loss': nan}"
    assert json.loads(done.read_text(), parse_constant=pytest.fail)["metrics"] == {"loss": None}
    assert repr(run_stage("sft", make(), resume=True, reuse=True).metrics) == "{'loss': nan}"
    assert not (tmp_path / "out" / "sft" / "failed.json").exists()
    log = (tmp_path / "logs" / "sft" / "sft.log").read_text(encoding="utf-8")
    assert "episode.gif was omitted: division by zero" in log
    assert "in the registry was omitted: registry.sqlite: the registry is read-only" in log


def test_a_stage_killed_before_its_entry_in_the_registry_is_registered_by_the_next_run(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    def train(config: SFTConfig, run: Run) -> dict[str, float]:
        run.begin(1)
        publish_model(run)
        return {}

    monkeypatch.setenv("ACCORD_REGISTRY", str(tmp_path / "registry.sqlite"))
    trains(train)
    with monkeypatch.context() as patch:
        patch.setattr("accord.registry.store.Store.add", kill)
        with pytest.raises(Killed):
            run_stage("sft", make(), resume=False, reuse=False)
    assert open_store().list() == []
    assert run_stage("sft", make(), resume=True, reuse=True).skipped
    (version,) = open_store().list()
    assert (version.label, Path(version.outs[0]).resolve()) == ("sft@1", (tmp_path / "out").resolve())


def test_a_rank_that_has_lost_another_says_so_and_keeps_the_cause_in_its_log(
    make: Callable[..., SFTConfig], trains: Callable[[Train], None], tmp_path: Path
) -> None:
    def train(config: Any, run: Run) -> dict[str, float]:
        run.open_folders()
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:13193")

    trains(train)
    with pytest.raises(Failed, match="another rank has ended"):
        run_stage("sft", make(), resume=False, reuse=False)
    assert json.loads((tmp_path / "out" / "sft" / "failed.json").read_text())["error"].startswith("another rank")
    assert "Connection closed by peer" in (tmp_path / "logs" / "sft" / "sft.log").read_text()
