"""Every command in the documentation is one that this version takes; the cheap ones are run."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from accord.cli import main, parse
from accord.config.load import load
from accord.config.section import known_keys
from accord.config.variants import Variants
from accord.errors import UserError
from accord.evaluation.reward_models import length_figures, reward_figures
from accord.pipeline.orchestrator import plan
from accord.stage_kinds.table import STAGE_KINDS

REPO = Path(__file__).parents[2]
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(bash|console|sh|shell)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    page: str
    words: list[str]


def commands() -> Iterator[Command]:
    """The lines of the fenced shell blocks, comments and prompts left out, continued lines joined."""
    for page in PAGES:
        for _, block in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.strip().removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # OMP_NUM_THREADS=1 accord …
                    words = words[1:]
                if words:
                    yield Command(str(page.relative_to(REPO)), words)


def ids(command: Command) -> str:
    return f"{command.page}: {' '.join(command.words)}"


ALL = list(commands())
OURS = [c for c in ALL if c.words[0] == "accord"]
MODULES = [c for c in ALL if "-m" in c.words and c.words[c.words.index("-m") + 1].startswith("src")]
RUNNER = [c for c in ALL if c.words[0] == "./run_phase4.sh"]
MAKE = [c for c in ALL if c.words[0] == "make"]
CHEAP = [c for c in OURS if "--help" in c.words or "-h" in c.words or c.words[1] == "config"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """And every name of the hub is one of a model that is there: there is no network in tests."""
    monkeypatch.chdir(REPO)
    monkeypatch.setattr("accord.pipeline.references.pinned_model", lambda name: f"{name}@{'0' * 40}")


def check(words: list[str]) -> None:
    """Raises where a command's options, its files or its settings are not what this version knows."""
    options = parse(words)
    if options.command == "run":
        plan(options.pipeline, options.overrides)
    elif options.command == "config":
        load(STAGE_KINDS[options.stage].settings, options.config, options.overrides)
    elif options.command in STAGE_KINDS:
        load(STAGE_KINDS[options.command].settings, options.config, options.overrides)


def test_the_readme_shows_the_two_commands_and_the_stages() -> None:
    shown = [" ".join(c.words) for c in ALL if c.page == "README.md"]
    assert "./run_phase4.sh" in shown
    assert "make test" in shown
    stages = {c.words[1] for c in OURS if c.page == "README.md"}
    assert {"sft", "reward", "ppo", "dpo", "run", "chat"} <= stages


@pytest.mark.parametrize("command", OURS, ids=ids)
def test_a_command_is_understood(command: Command) -> None:
    check(command.words[1:])


@pytest.mark.parametrize("command", MODULES, ids=ids)
def test_a_module_is_understood(command: Command) -> None:
    at = command.words.index("-m")
    module = importlib.import_module(command.words[at + 1])
    stage = re.search(r'main_of\("(\w+)"\)', Path(str(module.__file__)).read_text())
    assert stage
    check([stage[1], *command.words[at + 2 :]])


@pytest.mark.parametrize("command", RUNNER, ids=ids)
def test_the_runner_is_understood(command: Command) -> None:
    assert os.access("run_phase4.sh", os.X_OK)
    check(["run", "configs/pipeline.yaml", *command.words[1:]])


@pytest.mark.parametrize("command", MAKE, ids=ids)
def test_a_target_is_in_the_makefile(command: Command) -> None:
    text = Path("Makefile").read_text()
    for target in (w for w in command.words[1:] if not w.startswith("-") and "=" not in w):
        assert re.search(rf"^{re.escape(target)}:", text, re.MULTILINE), target
        assert re.search(rf"^\.PHONY:.*\b{re.escape(target)}\b", text, re.MULTILINE), target


@pytest.mark.parametrize("command", CHEAP, ids=ids)
def test_a_cheap_command_runs(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(command.words[1:])
    except SystemExit as left:  # argparse's own --help
        code = int(left.code or 0)
    assert code == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Links, and paths of this repository in backquotes."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for path in re.findall(r"`((?:accord|configs|docs|tests|src)/[\w./-]+)`", prose):
        assert (REPO / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_headings_that_a_page_links_to_exist(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        other = (page.parent / target) if target else page
        titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
        assert heading in anchors, f"{page.name} links to {target}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_settings_that_a_page_names_exist(page: Path) -> None:
    settings = [kind.settings for kind in STAGE_KINDS.values()]
    classes = [c for s in settings for c in (s.classes.values() if isinstance(s, Variants) else [s])]
    known = {key for cls in classes for key in known_keys(cls)}
    # reward.gold_agreement and its like are keys of results.json
    figures = inspect.getsource(reward_figures) + inspect.getsource(length_figures)
    known |= {f"reward.{key}" for key in re.findall(r'"(\w+)":', figures)}
    text = page.read_text(encoding="utf-8")
    for key in re.findall(r"`((?:training|model|data|kl|reward|sampling)\.(?!safetensors)[a-z_.]+)(?:=[^`]*)?`", text):
        assert key in known, f"{page.name} names the setting {key}"


@pytest.mark.parametrize(
    "line",
    [
        "sft --config configs/nowhere.yaml",
        "sft --config configs/rlhf_sft.yaml training.lr=1",
        "run configs/pipeline.yaml ppo_ml.seed=1",
        "run configs/pipeline.yaml ppo_lm.kl.bta=1",
        "stf",
        "sft --confg x",
    ],
)
def test_mistakes_in_a_page_are_found(line: str) -> None:
    with pytest.raises((UserError, SystemExit)):
        check(line.split())
