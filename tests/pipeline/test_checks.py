"""A run that is refused leaves folders, logs and registry as they were, byte for byte, whatever stage it is."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.config.common import Stage
from accord.config.load import load
from accord.data.tokenizer import Tokenizer
from accord.errors import Interrupted, UserError
from accord.pipeline.checks import check_folders
from accord.pipeline.stage import run_stage
from accord.registry.store import open_store
from accord.runtime.run import Run
from accord.stage_kinds.table import STAGE_KINDS

DONE = {
    "key": "0123456789abcdef",
    "settings": {},
    "inputs": {},
    "sources": {},
    "version": 1,
    "metrics": {},
    "seconds": 1.0,
}
RAISING = "raise ZeroDivisionError('by zero')\n"


def tree(*folders: Path) -> dict[str, str]:
    """Every folder, and every file with the digest of its bytes."""
    found = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in found}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Any, make_tiny: Callable[..., Any]) -> Path:
    """A folder with a finished stage of every kind, of settings that nobody asks for, and inputs of every sort of wrong."""
    monkeypatch.chdir(tmp_path)
    for kind in STAGE_KINDS:
        for path, text in {
            f"out/{kind}/done.json": json.dumps({**DONE, "kind": kind, "outputs": {"result.txt": "1"}}),
            f"out/{kind}/config.yaml": "seed: 9\n",
            f"out/{kind}/result.txt": f"the result of {kind}\n",
            f"logs/{kind}/{kind}.log": "step 1\n",
            f"logs/{kind}/metrics.jsonl": '{"step": 1, "loss": 0.5}\n',
            f"logs/{kind}/events.out.tfevents.1": "events",
        }.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text)
    good = {"sft": world.sft, "base": world.base, "preferences": world.preferences, "prompts": world.prompts}
    for name, source in good.items():
        Path(f"bad_{name}.jsonl").write_text(Path(source).read_text() + '{"nothing": 1}\n')
    Path("half.jsonl").write_text(Path(world.sft).read_text() + '{"prompt": "a", "comp')
    Path("one.jsonl").write_text('{"prompt": "a"}\n')
    Path("empty.jsonl").write_text("")
    candidates = [{"text": text, "ended": True, "model": "m"} for text in ("a b", "b a")]
    rows = [{"prompt": "a", "candidates": candidates}, {"prompt": "b", "candidates": [{"text": 3}]}]
    Path("bad_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("samples.jsonl").write_text(json.dumps(rows[0]) + "\n")
    Path("raising.py").write_text(RAISING)
    for name, width in (("narrow", 64), ("short", 32)):
        tokenizer = Tokenizer.open(world.transformer)
        from accord.models.open import small_backbone

        small_backbone("transformer", width, 1, 50 if name == "narrow" else 40, 1, 0).save(name)
        tokenizer.save(name)
    return tmp_path


SFT = ("model.base_model={transformer}", "data.train={sft}")
DPO = ("model.base_model={transformer}", "data.train={preferences}")
PPO = (
    "model.policy=language",
    "model.base_model={transformer}",
    "reward.source={rewards}:brevity",
    "prompts={prompts}",
)
PAIRS = ("model.base_model={transformer}", "prompts={prompts}")
COMPARE = ("models.sft={transformer}", "models.dpo={transformer}", "reference={transformer}", "prompts={prompts}")
REFUSALS: list[tuple[str, tuple[str, ...], str]] = [
    ("demo", ("name=../x",), "name: '../x' is not a name"),
    ("demo", ("device=cuda:7",), "device: 'cuda:7' is not"),
    ("demo", ("base_row=3",), "unknown key 'base_row'; did you mean 'base_rows'?"),
    (
        "demo",
        ("out=one.jsonl",),
        "one.jsonl/demo: cannot be created (Not a directory); choose another with out= or logs=",
    ),
    ("demo", ("name=sft",), "name: 'sft' is where the stage sft is looked for"),
    ("pretrained", ("source={reward}",), "a reward model scores replies and writes none"),
    ("pretrained", ("source=out",), "source: out is in the folder that this stage would write (pretrained)"),
    ("base", ("data.train=bad_base.jsonl",), "bad_base.jsonl, row 10"),
    ("base", ("data.train=absent.jsonl",), "data.train: 'absent.jsonl' does not exist"),
    ("sft", (*SFT, "data.train=bad_sft.jsonl"), "bad_sft.jsonl, row 9"),
    ("sft", (*SFT, "data.train=half.jsonl"), "half.jsonl, row 9: not valid JSON"),
    ("sft", (*SFT, "data.train=empty.jsonl"), "empty.jsonl is empty"),
    ("sft", (*SFT, "device=banana"), "device: 'banana' is no device"),
    ("sft", (*SFT, "model.base_model={reward}"), "a reward model scores replies and writes none"),
    ("sft", (*SFT, "model.base_model=short"), "short: the tokenizer has 50 ids and the model 40"),
    ("sft", (*SFT, "model.max_length=2"), "no row is usable"),
    ("sft", (*SFT, "model.base_model=sft"), "model.base_model: 'sft' is the folder that this stage would write"),
    (
        "sft",
        (*SFT, "data.train=out/sft/result.txt"),
        "data.train: out/sft/result.txt is in the folder that this stage would",
    ),
    ("sft", (*SFT, "name=dpo"), "name: 'dpo' is where the stage dpo is looked for"),
    ("sft", (*SFT, "logs=out/sft"), "out/sft: the folder of all logs (logs=out/sft) is in it"),
    ("pairs", (*PAIRS, "annotator=no_such_module:f"), "annotator: 'no_such_module:f' cannot be imported"),
    (
        "pairs",
        (*PAIRS, "annotator=raising:f"),
        "annotator: 'raising:f' cannot be imported: raised ZeroDivisionError: by zero (",
    ),
    ("pairs", (*PAIRS, "prompts=bad_prompts.jsonl"), "bad_prompts.jsonl, row 9"),
    ("pairs", (*PAIRS, "model.max_length=64", "max_new_tokens=64"), "max_new_tokens (64) leaves no room for a prompt"),
    ("sample", (*PAIRS, "prompts=bad_prompts.jsonl"), "bad_prompts.jsonl, row 9"),
    ("sample", (*PAIRS, "model.base_model={reward}"), "a reward model scores replies and writes none"),
    ("judge", ("samples=bad_samples.jsonl",), "bad_samples.jsonl, row 2"),
    ("judge", ("samples=samples.jsonl", "judge=no_such_module:f"), "judge: 'no_such_module:f' cannot be imported"),
    ("judge", ("samples=samples.jsonl", "judge=feedback://a/b"), "names no project"),
    ("judge", ("samples=samples.jsonl", "openai.url=ftp://x", "openai.model=m"), "openai.url"),
    ("reward", (*DPO, "data.train=bad_preferences.jsonl"), "bad_preferences.jsonl, row 9"),
    ("reward", (*DPO, "model.input_dim=7"), "model.input_dim is 7"),
    ("reward", (*DPO, "model.kind=language", "model.layers=99"), "model.layers is 99, but the model has 2"),
    ("dpo", (*DPO, "data.train=bad_preferences.jsonl"), "bad_preferences.jsonl, row 9"),
    ("dpo", (*DPO, "model.max_length=4"), "most prompts would lose more than three quarters of their tokens"),
    ("dpo", (*DPO, "data.heldout=bad_preferences.jsonl"), "bad_preferences.jsonl, row 9"),
    (
        "ppo",
        (*PPO, "reward.source=raising:f"),
        "reward.source: 'raising:f' cannot be imported: raised ZeroDivisionError: by zero (",
    ),
    ("ppo", (*PPO, "reward.source={rewards}:absent"), "reward.source: '{rewards}:absent' cannot be imported"),
    ("ppo", (*PPO, "reward.source={transformer}"), "so this is not a reward model"),
    ("ppo", (*PPO, "reference={reward}"), "a reward model scores replies and writes none"),
    ("ppo", (*PPO, "prompts=bad_prompts.jsonl"), "bad_prompts.jsonl, row 9"),
    (
        "ppo",
        (*PPO, "model.max_length=64", "sampling.max_new_tokens=128"),
        "raise model.max_length, or lower sampling.max_new_t",
    ),
    (
        "ppo",
        (*PPO, "model.max_length=65"),
        "prompt too long 8. model.max_length bounds a prompt and its reply together",
    ),
    ("ppo", (*PPO, "training.samples_per_prompt=7"), "training.replies (64) must be a multiple"),
    ("ppo", (*PPO, "model.policy=heads", "model.obs_dim=7"), "model.obs_dim is 7"),
    ("ppo", ("environment=NoSuchTask-v0",), "NoSuchTask"),
    ("compare", (*COMPARE, "models.dpo={reward}"), "a reward model scores replies and writes none"),
    ("compare", (*COMPARE, "models.dpo=short"), "short: the tokenizer has 50 ids and the model 40"),
    ("compare", (*COMPARE, "gold={rewards}:absent"), "gold: '{rewards}:absent' cannot be imported"),
    ("compare", (*COMPARE, "reward_model={reward}", "pairs=bad_preferences.jsonl"), "bad_preferences.jsonl, row 9"),
    ("compare", (*COMPARE, "prompts=one.jsonl"), "intervals over prompts need at least 2 different ones, found 1"),
    ("fuse", ("models.a.model={transformer}", "models.b.model=narrow"), "differ in architecture"),
    ("fuse", ("models.a.model={reward}", "models.b.model={reward}", "calibrate=bad_preferences.jsonl"), "row 9"),
]


def test_there_are_refusals_of_every_kind() -> None:
    assert {kind for kind, _, _ in REFUSALS} == set(STAGE_KINDS)


@pytest.mark.parametrize(("kind", "overrides", "message"), REFUSALS, ids=[f"{k} {o[-1]}" for k, o, _ in REFUSALS])
def test_a_refused_run_changes_not_a_byte(
    kind: str,
    overrides: tuple[str, ...],
    message: str,
    place: Path,
    world: Any,
    rewards: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {**vars(world), "rewards": rewards}
    before = tree(place, open_store().root)
    assert main([kind, "out=out", "logs=logs", *(o.format(**names) for o in overrides)]) == 2
    said = capsys.readouterr().err
    assert message.format(**names) in said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    after = tree(place, open_store().root)
    assert {path: digest for path, digest in after.items() if "__pycache__" not in path} == before


# ------------------------------------------------------------------ crashes and signals before the first step
@pytest.fixture
def config(place: Path, world: Any) -> Stage:
    return load(STAGE_KINDS["sft"].settings, None, ["out=out", "logs=logs", f"model.base_model={world.transformer}",
                                                    f"data.train={world.sft}"])  # fmt: skip


def crash(*_: object) -> None:
    raise ZeroDivisionError("by zero")


def test_a_bug_before_the_first_step_changes_nothing_and_names_its_line(
    config: Stage, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accord.algorithms.sft.describe_model", crash)
    before = tree(place)
    with pytest.raises(
        UserError, match=r"sft: ZeroDivisionError: by zero \(before its first step, at test_checks.py line"
    ):
        run_stage("sft", config, resume=False, reuse=False)
    assert tree(place) == before


def test_ctrl_c_before_the_first_step_changes_nothing(
    config: Stage, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accord.algorithms.sft.describe_model", lambda *_: str(signal.raise_signal(signal.SIGINT)))
    before = tree(place)
    with pytest.raises(Interrupted, match="sft: stopped before its first step; nothing was changed"):
        run_stage("sft", config, resume=False, reuse=False)
    assert tree(place) == before


def test_every_kind_opens_its_folder_once_everything_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the opening fails, nothing was written before it: the small world's stage, which has no steps."""

    def refuse(run: Run) -> None:
        raise UserError("not yet")

    monkeypatch.setattr(Run, "open_folders", refuse)
    before = tree(place)
    assert main(["demo", "out=out", "logs=logs", "base_rows=3", "sft_rows=3", "preference_rows=3"]) == 2
    assert tree(place) == before


# ------------------------------------------------------------------ folders
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"out/sft/begun.json": '{"kind": "dpo", "key": "0", "inputs": {}}'},
            "out/sft: holds a stage of kind 'dpo', not 'sft'; choose another name=",
        ),
        ({"out/sft/thesis.tex": "x"}, "out/sft: holds thesis.tex and no record of a stage"),
        ({f"out/sft/{n}.md": "x" for n in "abcde"}, "out/sft: holds a.md, b.md, c.md and 2 more and no record"),
        ({"logs/sft/events.out.tfevents.1": "x"}, "logs/sft: holds events.out.tfevents.1 and no record of a stage"),
        ({"out/done.json": "{}"}, "out/sft: is in the folder of the stage out; choose another out="),
        ({"out/begun.json": "{}"}, "out/sft: is in the folder of the stage out; choose another out="),
        ({"out": "x"}, "out/sft: cannot be created"),
        ({"out/.previous": "x"}, "out/.previous: cannot be created (Not a directory)"),
    ],
)
def test_folders_that_are_not_ours_are_refused(
    files: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, text in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    with pytest.raises(UserError) as caught:
        check_folders("sft", load(STAGE_KINDS["sft"].settings, None, ["out=out", "logs=logs"]), {})
    assert str(caught.value).startswith(message)


def test_empty_folders_and_hidden_files_are_fine(tmp_path: Path) -> None:
    config = load(STAGE_KINDS["sft"].settings, None, [f"out={tmp_path}/out", f"logs={tmp_path}/logs"])
    check_folders("sft", config, {})
    (tmp_path / "out" / "sft").mkdir(parents=True)
    (tmp_path / "out" / "sft" / ".DS_Store").write_text("x")
    check_folders("sft", config, {})


def test_a_stage_inside_its_input_is_refused(tmp_path: Path, world: Any) -> None:
    config = load(STAGE_KINDS["sft"].settings, None, [f"out={world.transformer}", f"logs={tmp_path}"])
    with pytest.raises(UserError, match=r"model\.base_model: .* would replace its own input"):
        check_folders("sft", config, {"model.base_model": world.transformer})


# ------------------------------------------------------------------ pipelines
@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            "dpo: { inputs: { model.base_model: sft, data.train: demo }, set: { device: 'cuda:7' } }",
            "device: 'cuda:7' is not",
        ),
        (
            "pairs: { inputs: { model.base_model: sft, prompts: demo }, set: { annotator: 'raising:f' } }",
            "raised ZeroDivisionError",
        ),
        (
            "dpo: { inputs: { model.base_model: sft }, set: { data.train: half.jsonl } }",
            "half.jsonl, row 9: not valid JSON",
        ),
        (
            "mine: { kind: dpo, inputs: { model.base_model: sft, data.train: demo } }",
            "holds a stage of kind 'sft', not 'dpo'",
        ),
    ],
)
def test_the_last_stage_is_checked_before_the_first_one_runs(
    stage: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out/mine").mkdir()
    Path("out/mine/done.json").write_text(json.dumps({**DONE, "kind": "sft"}))
    text = "out: out\nlogs: logs\nstages:\n  demo: {}\n  base: { inputs: { data.train: demo } }\n"
    text += f"  sft: {{ inputs: {{ model.base_model: base, data.train: demo }} }}\n  {stage}\n"
    Path("p.yaml").write_text(text)
    before = tree(place)
    assert main(["run", "p.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"stage {stage.partition(':')[0]!r}: " in said
    assert message in said
    assert {path: digest for path, digest in tree(place).items() if "__pycache__" not in path} == before
