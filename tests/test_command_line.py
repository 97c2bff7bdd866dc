"""Every mistake on a command line is one sentence that says what to type, and no exception."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from accord.cli import main

STAGE = "seed: 1\ntraining: {batch_size: 3}\n"
PIPELINE = "seed: 1\nstages: {demo: {}, base: {}}\n"


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a stage's config and a pipeline, in which nothing is trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(STAGE)
    (tmp_path / "ppo_x.yaml").write_text("training: {gamma: 0.9}\nmodel: {hidden_dim: 8}\nenvironment: CartPole-v1\n")
    (tmp_path / "p.yaml").write_text(PIPELINE)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "there.yaml").write_text(STAGE)

    def run(*given: Any) -> None:
        raise AssertionError("a stage was started")

    monkeypatch.setattr("accord.pipeline.standalone.run_alone", run)


LR = "training.learning_rate"
SPACES = "a setting has no spaces around '='; type training.learning_rate=1e-4."
MISTAKES: list[tuple[str, str]] = [
    # an unknown command
    ("sfft", "no command 'sfft'; did you mean 'sft'?"),
    ("version", "no command 'version'; type accord --version."),
    ("qqqq", "no command 'qqqq'; see 'accord --help'."),
    ("", "no command ''; see 'accord --help'."),
    ("models lst", "models: no command 'lst'; did you mean 'list'?"),
    ("config shw sft", "config: WHAT is one of show, schema, not 'shw'; did you mean 'show'?"),
    ("config show stf", "config: STAGE is one of demo, "),
    (
        "models export a b --format hff",
        "models export: --format is one of hf, safetensors, gguf, not 'hff'; did you mean 'hf'?",
    ),
    ("--config c.yaml sft", "'--config': the command comes first, as in 'accord sft --config c.yaml sft'"),
    ("--debug sft", "'--debug': the command comes first"),
    # a setting written as an option
    ("sft --learning_rate 1e-4", "--learning_rate is a setting, not an option; type training.learning_rate=1e-4."),
    ("sft --learning-rate 1e-4", "--learning-rate is a setting, not an option; type training.learning_rate=1e-4."),
    (
        "sft --training.learning_rate=1e-4",
        f"--{LR} is a setting, not an option; type {LR}=1e-4.",
    ),
    (
        "sft --training.learning_rate 1e-4",
        f"--{LR} is a setting, not an option; type {LR}=1e-4.",
    ),
    ("sft --lr 1e-4", "--lr is a setting, not an option; type training.learning_rate=1e-4."),
    ("sft --seed", "--seed is a setting, not an option; type seed=VALUE."),
    ("sft --model reward", "--model is a setting, not an option; type model.base_model=reward."),
    ("ppo --environment CartPole-v1", "--environment is a setting, not an option; type environment=CartPole-v1."),
    ("config show sft --lr 1", "--lr is a setting, not an option; type training.learning_rate=1."),
    ("run p.yaml --seed 1", "--seed is a setting, not an option; type seed=1."),
    ("run p.yaml --gamma 1", "run: no option '--gamma'; the settings of a stage are typed as STAGE.gamma=1."),
    ("sft --set lr=1", "sft: no option '--set'; type the setting alone: lr=1."),
    ("chat x temperature=0", "chat: 'temperature=0' is one word too many; type --temperature 0."),
    # a setting in another form
    ("sft lr=1e-4", "override 'lr=1e-4': unknown key 'lr'; did you mean 'training.learning_rate'?"),
    ("sft lr=", "override 'lr=': unknown key 'lr'; did you mean 'training.learning_rate'?"),
    ("sft epochs=2", "override 'epochs=2': unknown key 'epochs'; did you mean 'training.num_epochs'?"),
    (
        "sft training.weight_decay=",
        "override 'training.weight_decay=': training.weight_decay: there is no value after '='",
    ),
    (
        "sft model=reward",
        "override 'model=reward': 'model' is a section; set one of its keys, such as model.base_model.",
    ),
    ("sft training.learning_rate = 1e-4", f"'=': {SPACES}"),
    (
        "sft training.learning_rate= 1e-4",
        f"'training.learning_rate=': {SPACES}",
    ),
    (
        "sft training.learning_rate =1e-4",
        f"'=1e-4': {SPACES}",
    ),
    ("sft seed 3", "'seed': a setting needs a value; type seed=3."),
    ("sft seed", "'seed': a setting needs a value; type seed=VALUE."),
    ("sft nonsense", "'nonsense': write it as key=value, e.g. training.learning_rate=3e-5; see 'accord sft --help'."),
    # a file in the wrong place
    ("sft c.yaml", "'c.yaml': type accord sft --config c.yaml."),
    ("sft --resume c.yaml", "'c.yaml': type accord sft --resume --config c.yaml."),
    ("config show sft c.yaml", "'c.yaml': type accord config show sft --config c.yaml."),
    ("sft p.yaml", "'p.yaml': a pipeline, not the config of one stage; type accord run p.yaml."),
    (
        "sft --config p.yaml",
        "p.yaml line 2: 'stages' makes this a pipeline, not the config of one stage; type accord run p.yaml.",
    ),
    ("sft cc.yaml", "cc.yaml: no such config file; did you mean 'c.yaml'?"),
    ("sft --config cc.yaml", "cc.yaml: no such config file; did you mean 'c.yaml'?"),
    (
        "sft --config c.yaml p.yaml",
        "'p.yaml': a stage reads one file, and --config c.yaml is given; leave one of them out.",
    ),
    ("sft --config c.yaml --config p.yaml", "--config: given twice; a stage reads one file."),
    ("run c.yaml", "c.yaml: the config of one stage, not a pipeline; type accord sft --config c.yaml."),
    ("status ppo_x.yaml", "ppo_x.yaml: the config of one stage, not a pipeline; type accord ppo --config ppo_x.yaml."),
    ("run sft", "sft: a stage, not a pipeline's file; type accord sft for the stage alone, or accord run"),
    ("run p.yaml base", "'base': settings are typed as KEY=VALUE; to run only one stage, type --only base."),
    ("run p.yaml c.yaml", "'c.yaml': accord run reads one pipeline's file; leave one of them out."),
    ("logs p.yaml", "logs: STAGE is missing; type accord logs STAGE p.yaml."),
    # an option misspelled, without its value, of a wrong type
    ("sft --confg c.yaml", "sft: no option '--confg'; did you mean '--config'?"),
    ("sft --config", "sft: --config: expected one argument; see 'accord sft --help'."),
    ("sft -x", "sft: no option '-x'; see 'accord sft --help'."),
    ("models show x --jsn", "models: no option '--jsn'; did you mean '--json'?"),
    ("run p.yaml --jobs many", "run: --jobs: expected a whole number, found 'many'; see 'accord run --help'."),
    ("run p.yaml --jobs 0", "--jobs 0: at least one stage runs at a time."),
    ("chat x --temperature warm", "chat: --temperature: expected a number, found 'warm'; see 'accord chat --help'."),
    ("run", "run: FILE is missing; type accord run FILE."),
    ("config", "config: WHAT and STAGE are missing; type accord config WHAT STAGE."),
    ("models export", "models export: MODEL and DIR are missing; type accord models export MODEL DIR."),
    ("sft help", "'help': type accord sft --help."),
    ("sft ppo", "'ppo': a command runs one stage; type accord ppo for that one."),
    # copied from a web page
    ("sft –config c.yaml", "'–config': begins with a typographic dash; type --config."),
    ("sft —config c.yaml", "'—config': begins with a typographic dash; type --config."),
    ("sft –h", "'–h': begins with a typographic dash; type -h."),
    ("models tag -- = --", "'--': no command needs it; leave it out."),
    ("sft “seed=1”", "'“seed=1”': has typographic quotes; type seed=1."),
    ("sft name=‘x’", "'name=‘x’': has typographic quotes; type name=x."),
    ("sft name=a\0b", "'name=a\\x00b': holds a zero byte"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line or "nothing" for line, _ in MISTAKES])
def test_a_mistake_says_what_to_type(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert main(line.split(" ")) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"accord: {message}")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(Path().rglob("*")) == before


def test_what_the_sentence_says_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("config show sft training.learning_rate=1e-4", "config show sft --config c.yaml", "status p.yaml"):
        assert main(line.split()) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert (
        main(["config", "show", "sft", "reference=", "--config", "c.yaml"]) == 2
    )  # no such key: not taken for '= value'
    assert "unknown key 'reference'" in capsys.readouterr().err
    assert (
        main(["config", "show", "ppo", "reference=", "seed=3"]) == 2
    )  # empty, and the next word is a setting of its own
    assert "there is no value after '='" in capsys.readouterr().err
    assert main(["config", "show", "ppo", "reward.missing_eos_penalty=", "seed=3"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["reward"]["missing_eos_penalty"], shown["seed"]) == (None, 3)
