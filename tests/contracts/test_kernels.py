"""Every kernel names the plain function that it equals and the test that compares them, and imports no model."""

from __future__ import annotations

import ast
import pkgutil
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
KERNELS = sorted(path for path in (REPO / "accord" / "kernels").glob("*.py") if path.stem != "__init__")


def claim(path: Path) -> tuple[list[str], list[str]]:
    """The plain functions and the tests that a kernel's docstring names from "Plain form:" on."""
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("Plain form:")[2]
    return re.findall(r"``([a-z_]+(?:\.\w+)+)``", text), re.findall(r"``(tests/[\w/]+\.py)``", text)


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_a_kernel_names_its_plain_form_and_the_test_that_compares_them(path: Path) -> None:
    functions, tests = claim(path)
    assert functions
    assert tests
    for name in functions:
        assert callable(pkgutil.resolve_name(name)), name
    for test in tests:
        assert (REPO / test).is_file(), test
