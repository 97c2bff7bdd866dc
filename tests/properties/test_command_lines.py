"""No command line ends in an exception: random options, misspelled words and values of every YAML type.

hypothesis keeps the examples that failed, and draws the same ones each time (``derandomize``).  Nothing is trained: the stage
or pipeline would start where the functions below stand.
"""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from accord.cli import main
from accord.config.section import known_keys
from accord.stage_kinds.table import STAGE_KINDS

KEPT = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = [
    "", "''", "~", "true", "yes", "0", "-1", "3", "1e-4", "1e999", ".inf", ".nan", "10e300", "0x1F", "1_000", "12:30:45",
    "2026-11-27", "text", "'3'", "[]", "[1, 2]", "{}", "{a: 1}", "{a: {b: [~]}}", "[[[[]]]]", "!!int abc", "!!python/object:x",
    "*a", "&a [*a]", "a: b: c", "{", "[", '"', "|", ">", "%", "@", "`", "- ", "? ", ": ", "#", "\t", "é", "\ud800", "\u202e",
    "=", "==",    "9" * 5000, "x" * 5000, "../x", "/", "~/x", "C:\\x", "a:b", ":", "accord.data.demo:gold_scores", "nowhere:f",
    "sft", "demo", "sft@latest", "c.yaml", "p.yaml", "folder", "empty.jsonl", "binary.yaml",
]  # fmt: skip
WORDS = [
    "sfft", "help", "version", "--version", "-h", "--help", "-x", "--", "-", "=", "c.yaml", "p.yaml", "e.yaml", "binary.yaml",
    "nowhere.yaml", "folder", "–config", "“x”", "--config", "--config=c.yaml", "--config=", "--resume", "--debugg", "--set",
    "--only", "--force", "--jobs", "--dry-run", "--emit", "--follow", "--json", "--temperature", "--seed", "--lr", "1",
    "nan", "", " ", "\n", "é",
]  # fmt: skip
COMMANDS = [
    *STAGE_KINDS, "run", "status", "why", "logs", "clean", "chat", "config", "models", "config show", "config schema",
    *(f"models {name}" for name in ("list", "show", "lineage", "alias", "promote", "tag", "diff", "rm", "export", "import")),
]  # fmt: skip


ANYWHERE = [
    "stages",
    "demo.seed",
    "base.training.batch_size",
    "nonsense",
    "",
    ".",
    "a.b.c.d",
    "é",
    "training",
    "models.a.model",
]


def keys(kinds: Iterable[str]) -> list[str]:
    """Every setting of these stage kinds, and some that are none."""
    found: set[str] = set(ANYWHERE)
    for kind in kinds:
        settings_of = STAGE_KINDS[kind].settings
        found |= {key for cls in getattr(settings_of, "classes", {"": settings_of}).values() for key in known_keys(cls)}
    return sorted(found)


KEYS = {kind: keys([kind]) for kind in STAGE_KINDS} | {"": keys(STAGE_KINDS)}
FORMS = [*["{}={}"] * 8, "{} = {}", "--{}={}", "--{}", "{}", "-{}={}"]


def misspelled(word: str, chance: random.Random) -> str:
    """A word with a letter dropped, doubled or replaced, or backwards."""
    i = chance.randrange(len(word) or 1)
    first, letter, rest = word[:i], word[i : i + 1], word[i + 1 :]
    return chance.choice([first + rest, first + letter + letter + rest, f"{first}_{rest}", word[::-1]])


@st.composite
def overrides(draw: st.DrawFn, kind: str) -> str:
    key = draw(st.sampled_from(KEYS[kind]))
    if draw(st.integers(0, 4)) == 0:
        key = misspelled(key, draw(st.randoms(use_true_random=False)))
    value = draw(st.one_of(st.sampled_from(VALUES), st.integers().map(str), st.floats().map(str), st.text(max_size=8)))
    return draw(st.sampled_from(FORMS)).format(key, value)


@st.composite
def lines(draw: st.DrawFn, commands: Sequence[str]) -> list[str]:
    """A command and up to five words after it, most of which are settings that it has."""
    command = draw(st.sampled_from(commands))
    kind = command if command in STAGE_KINDS else ""
    word = st.one_of(overrides(kind), overrides(kind), st.sampled_from(WORDS))
    return [command, *draw(st.lists(word, max_size=5))]


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small files of every sort, and no work: what would run a stage or a pipeline returns, what asks the user is answered."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "c.yaml").write_text("seed: 1\ntraining: {batch_size: 3}\n")
    (folder / "p.yaml").write_text("stages: {demo: {}, base: {inputs: {data.train: demo}}}\n")
    (folder / "e.yaml").write_text("")
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "empty.jsonl").write_text("")
    (folder / "folder").mkdir()

    def nothing(*given: Any, **more: Any) -> Any:
        return SimpleNamespace(skipped=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ACCORD_REGISTRY", str(folder / "registry.sqlite"))
        patch.setattr("builtins.input", lambda *given: "n")
        patch.setattr("accord.pipeline.standalone.run_stage", nothing)
        patch.setattr("accord.pipeline.clean.remove", nothing)
        yield


def outcome(line: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line)
        except SystemExit as left:  # argparse's own --help
            code = int(left.code or 0)
    return code, out.getvalue(), err.getvalue()


def check(line: list[str]) -> None:
    code, out, err = outcome(line)
    assert code in (0, 1, 2), err
    assert "Traceback" not in out + err
    said = [text for text in err.splitlines() if text.startswith("accord: ") and not text.startswith("accord: note: ")]
    assert (code == 0) == (not said), (code, err)


FIXED = [
    [],
    ["-x"],
    ["--help"],
    ["–config"],
    ["a", "b", "c", "d"],
    ["seed"],
    ["seed="],
    ["=", "="],
    ["--lr", "1"],
    ["\0"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_wrong_words_in_a_sentence(command: str) -> None:
    """A few fixed ones for each command, so that none is left to chance."""
    first = ["--dry-run"] if command == "run" else []
    for line in FIXED:
        check([*command.split(), *first, *line])


TYPES = [
    ("sft", "seed"), ("sft", "training.learning_rate"), ("sft", "name"), ("sft", "model"), ("sft", "data.train"),
    ("ppo", "environment_args"), ("ppo", "environment"), ("ppo", "reward.missing_eos_penalty"), ("ppo", "reward.terms"),
    ("pairs", "temperatures"), ("compare", "models"), ("fuse", "models"), ("fuse", "normalize"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "key"), TYPES)
def test_every_value_is_a_setting_or_a_sentence(kind: str, key: str) -> None:
    for value in VALUES:
        check(["config", "show", kind, f"{key}={value}"])


@KEPT
@given(lines(list(STAGE_KINDS)))
@example(["ppo", "environment=CartPole-v1", "environment_args=3"])
@example(["ppo", "environment=CartPole-v1", "environment_args={1: 2}"])
@example(["compare", "models={a: {b: c}}"])
@example(["fuse", "models=[1]"])
@example(["fuse", "--config", "p.yaml"])
def test_no_settings_raise(line: list[str]) -> None:
    check(["config", "show", *line])


@KEPT
@given(lines(COMMANDS))
def test_no_command_raises(line: list[str]) -> None:
    command, *words = line
    check([*command.split(), *(["--dry-run"] if command == "run" else []), *words])


def test_nothing_was_written_by_all_of_these() -> None:
    names = {path.name for path in Path().rglob("*")} - {
        "registry.sqlite",
        "registry.sqlite-wal",
        "registry.sqlite-shm",
    }
    assert names == {"c.yaml", "p.yaml", "e.yaml", "binary.yaml", "empty.jsonl", "folder"}
