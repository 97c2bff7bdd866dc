"""tests/ mirrors accord/: a test file is named after the source file that it tests."""

from __future__ import annotations

from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
OTHERS = {  # what is tested across files, against other libraries, or of the repository itself
    *("benchmarks", "closed_forms", "contracts", "mutants", "oracles", "performance", "properties", "test_phase4"),
}
FILES = [
    path.relative_to(REPO / "tests")
    for path in sorted((REPO / "tests").rglob("test_*.py"))
    if path.relative_to(REPO / "tests").parts[0] not in OTHERS
]


def sources(path: Path) -> list[Path]:
    """The source files or packages that a test file may be named after: ``test_ppo_prepare.py`` is one of ppo.py's."""
    folder, words = REPO / "accord" / path.parent, path.stem.removeprefix("test_").split("_")
    names = ["_".join(words[:n]) for n in range(1, len(words) + 1)]
    return [p for name in names for p in (folder / f"{name}.py", folder / name) if p.is_file() or p.is_dir()]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_test_file_is_named_after_what_it_tests(path: Path) -> None:
    assert sources(path), f"accord/{path.parent} has no file that tests/{path} is named after"


def test_a_file_named_after_nothing_is_seen() -> None:
    assert sources(Path("algorithms/test_ppo_prepare.py")) == [REPO / "accord" / "algorithms" / "ppo.py"]
    assert not sources(Path("algorithms/test_incident.py"))
    assert not sources(Path("absent/test_ppo.py"))


def test_only_distributed_uses_torchs_processes() -> None:
    uses = {
        path.relative_to(REPO / "accord").parts[0]
        for path in (REPO / "accord").rglob("*.py")
        if "torch.distributed" in path.read_text(encoding="utf-8").replace("``torch.distributed``", "")
    }
    assert uses == {"distributed"}
