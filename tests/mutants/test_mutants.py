"""The command that tests the tests (run.py) separates caught from surviving faults, and its list fits the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
QUICK = {
    "adaptive-kl-min-for-max": "functional/test_kl.py::test_the_adaptive_coefficient_equals_hand_computed_numbers",
    "score-at-the-last-pad": "rollout/test_shaping.py::test_the_score_is_at_the_last_token",
    "eos-penalty-added": "rollout/test_shaping.py::test_the_missing_eos_penalty_replaces_the_score_once",
}
HARMLESS = {
    "name": "a-comment",
    "wrong": "nothing",
    "file": "accord/functional/kl.py",
    "old": '"""Half the squared log-ratio',
    "new": '"""One half of the squared log-ratio',
    "tests": ["tests/functional/test_kl.py"],
}


def mutants(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def write(folder: Path, *faults: dict[str, object]) -> str:
    path = folder / "faults.yaml"
    path.write_text(yaml.safe_dump(list(faults)), encoding="utf-8")
    return str(path)


def checkout() -> dict[str, bytes]:
    """What a run could damage."""
    files = [ROOT / "accord" / "functional" / "kl.py", ROOT / "accord" / "rollout" / "shaping.py", *HERE.glob("[!_]*")]
    return {str(path): path.read_bytes() for path in files}


def test_the_list_fits_the_code() -> None:
    """Every old text is once in its file and every named test exists: run.py refuses otherwise."""
    done = mutants("--list")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-2]) > 100
    faults = yaml.safe_load((HERE / "faults.yaml").read_text(encoding="utf-8"))
    covered = {fault["file"].split("/")[1] for fault in faults}
    assert covered >= {
        *("algorithms", "config", "data", "functional", "fusion", "io", "kernels", "models", "pipeline"),
        *("rollout", "runtime", "stage_kinds", "training"),
    }


def test_faults_are_caught_by_the_tests_that_should_and_the_checkout_stays() -> None:
    before = checkout()
    done = mutants("--jobs", "1", "--only", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "3 of 3 caught"
    for name, test in QUICK.items():
        (row,) = (line for line in done.stdout.splitlines() if f" {name} " in line)
        assert test in row
    assert checkout() == before


def test_a_survivor_and_a_fault_that_stops_the_tests_are_failures(tmp_path: Path) -> None:
    broken = {
        **HARMLESS,
        "name": "no-import",
        "old": "from torch import Tensor",
        "new": "import absent",
    }
    done = mutants("--jobs", "1", "--faults", write(tmp_path, HARMLESS, broken))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOTHING: it survives" in done.stdout
    assert "NOTHING: functional/test_kl.py (CollectError): no test could run" in done.stdout
    assert "not caught: a-comment in accord/functional/kl.py: nothing" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 of 2 caught"


def test_a_fault_that_does_not_fit_is_named(tmp_path: Path) -> None:
    for changed, said in (
        ({"old": "no such text"}, "fault a-comment: its old text stands 0 times in accord/functional/kl.py"),
        ({"old": "return"}, "times in accord/functional/kl.py, expected once"),
        ({"new": '"""' + "Half" + '"""' + "("}, "is no Python with it"),
        ({"tests": ["tests/absent.py"]}, "fault a-comment: there is no tests/absent.py"),
    ):
        done = mutants("--faults", write(tmp_path, {**HARMLESS, **changed}))
        assert done.returncode == 2
        assert said in done.stderr
    assert "no fault is named x" in mutants("--only", "x").stderr
