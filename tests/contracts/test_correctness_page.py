"""docs/correctness.md against the code: what it names exists, every trap is there once, and no test is named for two claims.

Names are found in the syntax trees, so nothing is imported; the pages of the algorithms use the same form for functions.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PAGE = REPO / "docs" / "correctness.md"
PAGES = [PAGE, *sorted((REPO / "docs" / "algorithms").glob("*.md"))]
TRAPS = 58
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
FUNCTION = re.compile(r"`([\w/]+\.py):([A-Za-z_][\w.]*)`")
ANY_NAME = re.compile(r"`[^`\n]*\.py::?[A-Za-z_][^`\n]*`")
ROW = re.compile(r"^\| (\d+) \|(.*)\|$", re.MULTILINE)


class Missing(Exception):
    """A name on a page that the code does not have."""


def names_in(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Functions, classes and variables of a module or a class."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    yield target.id, node
        elif isinstance(node, (ast.If, ast.Try)):
            yield from names_in([*node.body, *node.orelse])


@cache
def top(path: Path) -> dict[str, ast.stmt]:
    """The top-level names of a file."""
    return dict(names_in(ast.parse(path.read_text(encoding="utf-8")).body))


def find_test(path: str, name: str) -> None:
    """Raises Missing where a file has no such test, or one that pytest would not collect."""
    file = REPO / path
    if not file.is_file():
        raise Missing(f"there is no {path}")
    if not (name.startswith("test_") and isinstance(top(file).get(name), ast.FunctionDef)):
        raise Missing(f"{path} has no test {name}")


def file_of(short: str) -> Path:
    """A file of the package, from the repository, from the package, or by its name where that is the only one."""
    for file in (REPO / short, REPO / "accord" / short):
        if file.is_file() and file.is_relative_to(REPO / "accord"):
            return file
    found = [] if "/" in short else list((REPO / "accord").rglob(short))
    if len(found) != 1:
        raise Missing(f"{short} names {len(found)} files of the package")
    return found[0]


def find_function(short: str, dotted: str) -> None:
    """Raises Missing where a file of the package has no such function, class, variable, method or field."""
    names = top(file_of(short))
    for part in dotted.split("."):
        node = names.get(part)
        if node is None:
            raise Missing(f"{short} has no {dotted}")
        names = dict(names_in(node.body)) if isinstance(node, ast.ClassDef) else {}


def named(page: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(tests, functions) as the page names them."""
    text = page.read_text(encoding="utf-8")
    return TEST.findall(text), FUNCTION.findall(text)


# ------------------------------------------------------------------------------------- what is named
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_names_exists(page: Path) -> None:
    tests, functions = named(page)
    faults = []
    for find, names in ((find_test, tests), (find_function, functions)):
        for file, name in names:
            try:
                find(file, name)
            except Missing as missing:
                faults.append(str(missing))
    assert not faults, "\n".join(faults)
    loose = len(ANY_NAME.findall(page.read_text(encoding="utf-8"))) - len(tests) - len(functions)
    assert loose == 0, f"{page.name}: {loose} names are written in a form that is not checked"


def test_no_test_is_named_for_two_claims() -> None:
    twice = [f"{file}::{name}" for (file, name), count in Counter(named(PAGE)[0]).items() if count > 1]
    assert not twice, "\n".join(twice)


def test_every_claim_has_a_test() -> None:
    text = PAGE.read_text(encoding="utf-8")
    part = text[text.index("## What you can rely on") : text.index("## The traps")]
    claims = re.split(r"^\* ", part, flags=re.MULTILINE)[1:]
    assert 20 <= len(claims) <= 50
    for claim in claims:
        assert TEST.search(claim), claim


# ------------------------------------------------------------------------------------- the traps
def test_every_trap_is_there_once_in_its_order() -> None:
    assert [int(number) for number, _ in ROW.findall(PAGE.read_text(encoding="utf-8"))] == list(range(1, TRAPS + 1))


def test_every_trap_is_handled_and_tested_or_not_built() -> None:
    for number, row in ROW.findall(PAGE.read_text(encoding="utf-8")):
        cells = [cell.strip() for cell in row.split(" | ")]
        assert len(cells) == 4, number
        _, here, where, held = cells
        if where == held == "—":
            assert here.startswith("Not built yet"), number
        else:
            assert FUNCTION.search(where), number
            assert TEST.search(held), number


# ------------------------------------------------------------------------------------- this test's own
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tests/functional/test_kl.py", "test_estimators_equal_hand_computed_number"),
        ("tests/functional/test_absent.py", "test_estimators_equal_hand_computed_numbers"),
        ("tests/functional/test_kl.py", "policies"),  # a helper, which is not collected
        ("tests/training/test_checkpoint.py", "Trap"),
    ],
)
def test_a_wrong_test_is_seen(file: str, name: str) -> None:
    with pytest.raises(Missing):
        find_test(file, name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("accord/functional/kl.py", "k4"),
        ("functional/kl.py", "AdaptiveKL.updated"),
        ("functional/kl.py", "k1.update"),
        ("functional/absent.py", "k1"),
        ("__init__.py", "k1"),  # of many files
        ("tests/functional/test_kl.py", "policies"),  # not of the package
    ],
)
def test_a_wrong_function_is_seen(file: str, name: str) -> None:
    with pytest.raises(Missing):
        find_function(file, name)


def test_names_that_exist_are_found() -> None:
    find_test("tests/functional/test_kl.py", "test_estimators_equal_hand_computed_numbers")
    for file, name in (
        ("accord/functional/kl.py", "AdaptiveKL.update"),
        ("kl.py", "AdaptiveKL.horizon"),
        ("table.py", "STAGE_KINDS"),
        ("models/heads.py", "_linear"),
    ):
        find_function(file, name)
