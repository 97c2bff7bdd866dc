"""The Makefile's set-up: running needs no test tools, and every version is pinned."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).parents[2]
MAKEFILE = (REPO / "Makefile").read_text(encoding="utf-8")
TOOLS = {
    "hypothesis",
    "import-linter",
    "mypy",
    "pre-commit",
    "pytest",
    "pytest-xdist",
    "ruff",
    "stable-baselines3",
    "trl",
}


def section(name: str) -> str:
    """A table of pyproject.toml as text."""
    return (REPO / "pyproject.toml").read_text(encoding="utf-8").split(f"\n[{name}]\n")[1].split("\n[")[0]


def extras() -> dict[str, list[Requirement]]:
    found = re.findall(r"^(\w+) = \[(.*?)\]$", section("project.optional-dependencies"), re.MULTILINE)
    return {name: [Requirement(text) for text in re.findall(r'"([^"]+)"', body)] for name, body in found}


def core() -> list[Requirement]:
    body = re.search(r"^dependencies = \[(.*?)^\]", section("project"), re.MULTILINE | re.DOTALL)
    assert body
    return [Requirement(text) for text in re.findall(r'"([^"]+)"', body[1])]


def pinned() -> set[str]:
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(str(r.specifier).startswith("==") for r in requirements)
    return {canonicalize_name(r.name) for r in requirements}


def packages_of(requirements: list[Requirement], known: dict[str, list[Requirement]]) -> set[str]:
    """Packages that pip installs here for ``requirements``, indirect ones included as far as they are installed."""
    found: set[str] = set()
    pending = list(requirements)
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name == "accord":
            for extra in requirement.extras:
                pending += known[extra]
            continue
        found.add(name)
        for extra in ["", *requirement.extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needs = [Requirement(text) for text in requires(name) or []]
            except PackageNotFoundError:
                continue
            pending += [r for r in needs if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


def installed_by(stamp: str) -> list[str]:
    """The extras that a stamp's recipe in the Makefile installs."""
    recipe = re.search(rf"^\.venv/\.{stamp}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe, stamp
    return [name for group in re.findall(r"'\.\[([\w,]+)\]'", recipe[1]) for name in group.split(",")]


@pytest.mark.parametrize("stamp", ["setup", "test", "lint", "smollm2", "bench"])
def test_every_package_that_make_installs_is_pinned(stamp: str) -> None:
    known = extras()
    requirements = core() + [requirement for extra in installed_by(stamp) for requirement in known[extra]]
    missing = packages_of(requirements, known) - pinned()
    assert not missing


def test_every_install_in_the_makefile_is_constrained() -> None:
    assert re.search(r"^PIP := .* -m pip install .*-c constraints\.txt$", MAKEFILE, re.MULTILINE)
    assert MAKEFILE.count("pip install") == 1


def test_running_needs_no_test_tools_and_linters() -> None:
    known = extras()
    running = packages_of(core() + [r for extra in installed_by("setup") for r in known[extra]], known)
    assert {"torch", "transformers", "gymnasium", "gguf"} <= running
    assert not running & TOOLS
    assert "setup" in (REPO / "run_phase4.sh").read_text(encoding="utf-8")


def test_each_target_installs_the_tools_that_it_runs() -> None:
    known = extras()
    for stamp, tools in {
        "test": {"pytest", "pytest-xdist", "hypothesis", "trl", "stable-baselines3"},
        "lint": {"ruff", "mypy", "import-linter", "pre-commit"},
        "smollm2": {"vadersentiment", "gguf"},
        "bench": {"trl", "stable-baselines3", "gymnasium"},
    }.items():
        assert tools <= packages_of([r for extra in installed_by(stamp) for r in known[extra]], known), stamp
    for target, stamp in {
        "test": "test",
        "slow": "test",
        "mutants": "test",
        "lint": "lint",
        "type": "lint",
        "hooks": "lint",
    }.items():
        assert re.search(rf"^{target}: \.venv/\.{stamp}$", MAKEFILE, re.MULTILINE), target


def test_former_names_of_extras_still_install_the_same() -> None:
    known = extras()
    for former, present in {"gym": "control", "oracle": "oracles"}.items():
        assert packages_of(known[former], known) == packages_of(known[present], known)
