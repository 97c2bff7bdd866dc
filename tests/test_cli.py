"""The command line: fast, and exact about mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from accord.cli import main, parse, parser
from accord.config.load import load
from accord.config.sft import SFTConfig
from accord.models.reward import HEAD_CONFIG
from accord.pipeline.suited import suited
from accord.stage_kinds.table import STAGE_KINDS

REPO = Path(__file__).parents[1]


def fresh(code: str, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, in an empty folder."""
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


# ------------------------------------------------------------------ quick
def test_help_and_mistakes_need_no_torch(tmp_path: Path) -> None:
    """Help, configs and every mistake in a config: no torch, nothing written."""
    (tmp_path / "sft.yaml").write_text("training:\n  lerning_rate: 1\n")
    (tmp_path / "stages.yaml").write_text("stages: {demo: {}, base: {inputs: {data.train: dmeo}}}\n")
    commands: list[list[str]] = [
        ["--help"],
        ["sft", "--help"],
        ["run", "--help"],
        ["config", "show", "ppo"],
        ["config", "schema", "dpo"],
        ["sft", "--config", "sft.yaml"],
        ["sft", "training.batch=1"],
        ["dpo", "--config", "nowhere.yaml"],
        ["run", "stages.yaml"],
        ["run", "nowhere.yaml"],
        ["sft", "data.train=nowhere.jsonl"],
        ["sft", "--learning_rate", "1"],
        ["sft", "sft.yaml"],
        ["sfft"],
        ["run", "sft.yaml"],
    ]
    code = (
        "import sys, io, contextlib\n"
        "from accord.cli import main\n"
        f"for words in {commands!r}:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        try: code = main(words)\n"
        "        except SystemExit as left: code = left.code\n"
        "    print(code, 'torch' in sys.modules, 'Traceback' in err.getvalue(), len(out.getvalue()) > 0)\n"
    )
    done = fresh(code, tmp_path)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["0 False False True"] * 5 + ["2 False False False"] * 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sft.yaml", "stages.yaml"]


def test_help_alone_reads_no_settings(tmp_path: Path) -> None:
    """Help for the whole command loads no settings."""
    code = (
        "import sys\nfrom accord.cli import main\n"
        "for words in (['--help'], ['run', '--help'], ['models', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "print(sorted({'pydantic', 'yaml', 'rich', 'sqlalchemy', 'numpy', 'torch'} & set(sys.modules)))\n"
    )
    assert fresh(code, tmp_path).stdout.splitlines()[-1] == "[]"


def test_a_misspelled_key_is_reported_within_a_second(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 1\ntraining:\n  lerning_rate: 1\n")
    code = (
        "import sys, time\n"
        "from accord.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print(time.process_time())\n"
        "sys.exit(code)\n"
    )
    done = fresh(code, tmp_path, "sft", "--config", "c.yaml")
    assert done.returncode == 2
    assert done.stderr == (
        "accord: c.yaml line 3: unknown key 'training.lerning_rate'; did you mean 'training.learning_rate'?\n"
    )
    assert float(done.stdout) < 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


# ------------------------------------------------------------------ what the words mean
ORDERS = [
    ["sft", "--config", "c.yaml", "seed=1", "training.batch_size=2"],
    ["sft", "seed=1", "--config", "c.yaml", "training.batch_size=2"],
    ["sft", "seed=1", "training.batch_size=2", "--config", "c.yaml"],
    ["sft", "seed=1", "--resume", "training.batch_size=2", "--config=c.yaml", "--debug"],
    ["config", "show", "sft", "seed=1", "--config", "c.yaml", "training.batch_size=2"],
    ["config", "show", "--config", "c.yaml", "sft", "seed=1", "training.batch_size=2"],
    ["run", "seed=1", "c.yaml", "training.batch_size=2"],
    ["run", "--debug", "seed=1", "c.yaml", "training.batch_size=2"],
]


@pytest.mark.parametrize("words", ORDERS, ids=" ".join)
def test_overrides_may_stand_anywhere(words: list[str]) -> None:
    options = parse(words)
    assert options.overrides == ["seed=1", "training.batch_size=2"]
    assert (options.pipeline if words[0] == "run" else options.config) == "c.yaml"


def test_a_file_with_an_equals_sign_is_a_file() -> None:
    assert parse(["sft", "--config", "lr=1.yaml"]).config == "lr=1.yaml"
    assert parse(["chat", "lr=1/model", "--system", "a=b"]).system == "a=b"


def test_options_are_parsed_and_mistakes_exit_with_2() -> None:
    assert parse(["dpo", "--resume"]).resume is True
    assert parse(["dpo"]).resume is False
    assert parse(["chat", "x", "--temperature", "0", "--seed", "3"]).temperature == 0
    for words in (["stf"], ["config", "show", "stf"], ["config", "edit", "sft"], ["run"], ["sft", "--confg", "x"]):
        assert main(words) == 2


def test_every_stage_has_a_command_and_a_help_line() -> None:
    text = parser().format_help()
    for kind in (*STAGE_KINDS, "run", "chat", "config"):
        assert re.search(rf"\n    {kind}\s+[a-zA-Z]", text)


def test_config_show_prints_resolved_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("training: {batch_size: 7, learning_rate: 1e-3}\n")
    assert main(["config", "show", "sft", "training.batch_size=9", "--config", str(path), "seed=3"]) == 0
    shown = capsys.readouterr().out
    config = load(SFTConfig, path, ["training.batch_size=9", "seed=3"])
    decided = suited("sft", config).config  # what config.yaml of a run says, without open settings
    assert yaml.safe_load(shown) == decided.model_dump(mode="json")
    path.write_text(shown)
    assert load(SFTConfig, path) == decided


# ------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft", "nonsense"], "'nonsense': write it as key=value"),
        (["sft", "model.base_model=stf"], "model.base_model: 'stf' does not exist; did you mean 'sft'?"),
        (["sft", "model.base_model=./x/y"], "model.base_model: './x/y' does not exist"),
        (["dpo", "data.train=x.jsonl"], "data.train: 'x.jsonl' does not exist"),
        (["compare", "prompts=x.jsonl"], "prompts: 'x.jsonl' does not exist"),
        (["ppo", "reward.source=nowhere:brief"], "reward.source: 'nowhere:brief' cannot be imported"),
        (["pairs", "annotator=nowhere:brief"], "annotator: 'nowhere:brief' cannot be imported"),
        (["compare", "gold=nowhere:brief"], "gold: 'nowhere:brief' cannot be imported"),
        (["compare", "reward_model=reward", "pairs=''"], "the config: reward_model needs pairs"),
        (["demo", "base_rows=1", "out=file/x"], "file/x/demo: cannot be created (Not a directory)"),
        (["demo", "base_rows=1", "out=x", "logs=file/x"], "file/x/demo: cannot be created (Not a directory)"),
        (["chat", "nowhere"], "nowhere: no such model"),
        (["chat", "."], ".: no language model here"),
        (["chat", "file"], "file: no language model here"),
        (["chat", "stage"], "stage: no language model here"),
        (["chat", "scores"], "scores: is a reward model, which scores replies and writes none"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_is_one_sentence_and_exit_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And before anything is made: no base is trained for a file that does not exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "ppo_final.pt").write_text("heads")
    (tmp_path / "scores").mkdir()
    for name in ("config.json", HEAD_CONFIG):
        (tmp_path / "scores" / name).write_text("{}")
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"accord: {message}")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("words", [["ppo", "--help"], ["--help"], ["config", "schema", "ppo"]], ids=" ".join)
def test_a_reader_that_ends_early_ends_the_command_silently(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "accord.cli", *words]
    env = {**os.environ, "PYTHONUNBUFFERED": ""}  # argparse ignores a failed write, but not a failed flush
    try:
        ended = subprocess.run(command, env=env, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown == parser().format_help()
    with pytest.raises(SystemExit) as left:
        main(["help"])
    assert (left.value.code, capsys.readouterr().out) == (0, shown)
    assert main(["models"]) == 0
    assert capsys.readouterr().out.startswith("usage: accord models")
    assert main(["help", "sft"]) == 0
    assert "training.learning_rate=null" in capsys.readouterr().out


def test_the_version_is_a_line_with_what_results_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    import accord

    assert main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert re.fullmatch(
        rf"accord {re.escape(accord.__version__)}, Python [\d.]+\S*, torch {re.escape(torch.__version__)}, transformers [\d.]+\S*"
        r" \(\w+ \w+\)\n",
        shown,
    )


def test_an_empty_config_says_that_the_defaults_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("", "# only a comment\n", "---\n"):
        (tmp_path / "c.yaml").write_text(text)
        assert main(["config", "show", "sft", "--config", str(tmp_path / "c.yaml")]) == 0
        said = capsys.readouterr()
        assert yaml.safe_load(said.out) == suited("sft", SFTConfig()).config.model_dump(mode="json")
        assert said.err == f"accord: note: {tmp_path / 'c.yaml'} has no settings; all have their defaults.\n"


@pytest.mark.parametrize("code", ["main(['--help'])", "main(['sft'])", "__import__('accord').load('x')"])
def test_on_windows_it_names_wsl(code: str, tmp_path: Path) -> None:
    """Modules that only Unix has are absent there; Python's own ones are loaded before the platform changes."""
    prepare = (
        "import sys, argparse, json, pathlib, platform, importlib.metadata\n"
        "for name in ('fcntl', 'resource', 'termios', 'pwd', 'grp'): sys.modules[name] = None\n"
        "sys.platform = 'win32'\n"
        "from accord.cli import main\n"
        "from accord import UserError\n"
        f"try: print({code})\n"
        "except UserError as error: print('accord:', error, file=sys.stderr)\n"
    )
    done = fresh(prepare, tmp_path)
    assert done.stdout.strip() in ("2", "")
    assert done.stderr.startswith(
        "accord: accord runs on Linux and macOS; on Windows, install WSL (type 'wsl --install'"
    )
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    from accord.errors import UserError

    with pytest.raises(UserError, match="did you mean"):
        main(["sft", "sede=1", "--debug"])


def test_ctrl_c_outside_a_stage_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("accord.pipeline.orchestrator.run_pipeline", stopped)
    assert main(["run", "x.yaml"]) == 130
    assert capsys.readouterr().err == "accord: stopped immediately; the last saved state is kept.\n"
    monkeypatch.setattr("accord.data_report.inspect_file.inspect_file", stopped)
    assert main(["data", "x.jsonl", "--model", "transformer"]) == 130
    assert capsys.readouterr().err == "accord: stopped.\n", "nothing is saved that could be kept"


@pytest.mark.parametrize(
    ("words", "fix"), [(["run", "x.yaml"], "Run the same command again"), (["demo"], "Add --resume to resume")]
)
def test_a_stopped_stage_says_how_to_resume(
    words: list[str], fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from accord.errors import Interrupted

    def stopped(*args: Any) -> None:
        raise Interrupted("x: stopped at step 3 of 9; the state is saved.")

    monkeypatch.setattr("accord.pipeline.orchestrator.run_pipeline", stopped)
    monkeypatch.setattr("accord.pipeline.standalone.run_alone", stopped)
    assert main(words) == 130
    said = capsys.readouterr().err
    assert said.startswith(f"accord: x: stopped at step 3 of 9; the state is saved. {fix}")


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_a_stage_ends_with_what_to_run_next(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    got: list[Any] = []
    monkeypatch.setattr("accord.pipeline.standalone.run_alone", lambda *given: got.append(given))
    assert main([kind, "seed=3", "name=mine", "--resume"]) == 0
    assert got == [(kind, STAGE_KINDS[kind].settings(seed=3, name="mine"), True)]
    shown = capsys.readouterr().out
    assert shown.startswith("next: accord ")
    commands = shown.removeprefix("next: ").partition(", where ")[0].strip()
    for command in re.split(", or |; reward models: ", commands):
        if " with " not in command:  # a sentence
            parse(command.split()[1:])


def test_a_path_that_the_system_refuses_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", f"data.train={'x' * 5000}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("accord: xxx")
    assert "File name too long" in said
    assert len(said) < 300


def test_a_bug_keeps_its_traceback_and_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("accord.config.load.load", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["config", "show", "sft"])
    assert (
        capsys.readouterr().err == "accord: this looks like a bug of accord; please report it with the lines below.\n"
    )
