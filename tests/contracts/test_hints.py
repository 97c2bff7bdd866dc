"""Every command that a message names is one that this version takes, and none installs accord by its name."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord.cli import parse
from accord.errors import UserError
from accord.stage_kinds.table import STAGE_KINDS

REPO = Path(__file__).parents[2]
OTHERS = ("run", "status", "why", "logs", "clean", "chat", "config", "models", "feedback", "label", "data", "init")
COMMANDS = (*STAGE_KINDS, *OTHERS)
IN_TEXT = re.compile(r"'(accord [a-z][^'\n]*)'|(?:type|as in|run) (accord [a-z][^;,.'\n]*)|^(accord [a-z][^;,\n]*)")


def texts(tree: ast.AST) -> Iterator[str]:
    """The string constants of a module but for its docstrings; an f-string with {} for its values."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {
        id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inside:
            yield node.value


def quoted() -> Iterator[tuple[str, str]]:
    """Commands in quotes, after 'type', 'next:' or 'run', and alone at the start of a text, with the file that has them."""
    for path in sorted((REPO / "accord").rglob("*.py")):
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            for found in IN_TEXT.finditer(text):
                command = next(filter(None, found.groups())).strip()
                if command.split()[1] in COMMANDS and "..." not in command and command.split()[2:3] != ["needs"]:
                    yield path.relative_to(REPO).as_posix(), command


HINTS = sorted({*quoted()})


def test_hints_are_found() -> None:
    assert len(HINTS) > 20


@pytest.mark.parametrize(("file", "command"), HINTS, ids=lambda value: value)
def test_a_hint_is_a_command(file: str, command: str) -> None:
    options_of_a_stage = "seed=1" if command.split()[1] in STAGE_KINDS else "x"  # what stands for a word of its own
    command = re.sub(r"(?<= )\{\}(?= |$)", options_of_a_stage, command)
    words = shlex.split(command.replace("{}", "x").replace("{folder}", "x").replace("{logs}", "x"))[1:]
    try:
        options = parse(words)
    except UserError as error:
        pytest.fail(f"{file}: {command}: {error}")
    except SystemExit:  # --help
        return
    assert options.act


def test_no_text_installs_accord_by_its_name() -> None:
    for path in sorted((REPO / "accord").rglob("*.py")):
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            assert not re.search(r"pip install ['\"]?accord", text), path
