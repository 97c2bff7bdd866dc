"""Tests of the tests: plants one fault at a time in a copy of the package and looks whether a test turns red.

    python tests/mutants/run.py                  all of faults.yaml; exit code 1 where one survives
    python tests/mutants/run.py --only NAME …    some of them        --sample 10    a seeded sample
    python tests/mutants/run.py --list           their names         --jobs 4       so many at a time

The checkout is only read: each worker has a copy in a temporary folder, made again for every fault.  torch is imported
once; every fault gets a process forked from that one, so that no module of the package outlives its fault.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from compileall import compile_dir
from contextlib import suppress
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection, wait
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("accord", "src", "configs", "docs", "tests", "pyproject.toml", "README.md", "Makefile", "run_phase4.sh")
KERNELS = ("accord/kernels/numba_vectors.py", "accord/kernels/selective_scan_numba.py")
PRELOADED = {
    "": ("torch", "pytest", "hypothesis"),
    "numba": ("numba",),
    "transformers": ("transformers.models.llama.modeling_llama",),
}
"""Slow to import, so once for all faults: modules by the word in a test file that shows their use."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # a fork keeps no threads


class Mistake(Exception):
    """One sentence for whoever wrote the list, or whose suite is red without a fault."""


@dataclass(frozen=True)
class Fault:
    name: str
    wrong: str  # what goes wrong, in a sentence
    file: str
    old: str  # is in the file exactly once
    new: str
    tests: tuple[str, ...]  # files or node ids that should notice

    def planted(self, root: Path) -> str:
        """The file with the fault in it.  Raises Mistake where it cannot be planted."""
        source = (root / self.file).read_text(encoding="utf-8")
        if (found := source.count(self.old)) != 1:
            raise Mistake(f"fault {self.name}: its old text stands {found} times in {self.file}, expected once.")
        planted = source.replace(self.old, self.new)
        try:
            ast.parse(planted if self.file.endswith(".py") else "")
        except SyntaxError as error:
            raise Mistake(f"fault {self.name}: {self.file} is no Python with it: {error}.") from None
        return planted


def load(path: Path) -> list[Fault]:
    """The list.  Raises Mistake naming a fault whose entry is not as expected."""
    keys = {f.name for f in fields(Fault)}
    faults: list[Fault] = []
    for row in yaml.safe_load(path.read_text(encoding="utf-8")):
        name = row.get("name", "without a name")
        if row.keys() != keys:
            raise Mistake(f"fault {name}: has {', '.join(sorted(row))}, expected {', '.join(sorted(keys))}.")
        if any(name == other.name for other in faults):
            raise Mistake(f"fault {name}: stands twice in {path.name}.")
        faults.append(Fault(**{**row, "tests": tuple(row["tests"])}))
    return faults


def require_fit(fault: Fault) -> None:
    """Raises Mistake where the checkout has no place for the fault, or no such tests."""
    if fault.planted(ROOT) == (ROOT / fault.file).read_text(encoding="utf-8"):
        raise Mistake(f"fault {fault.name}: changes nothing.")
    for test in fault.tests:
        path, _, function = test.partition("::")
        if not (ROOT / path).is_file() or f"def {function}" not in (ROOT / path).read_text(encoding="utf-8"):
            raise Mistake(f"fault {fault.name}: there is no {test}.")


# ---------------------------------------------------------------------------------------- in the forked process
class Witness:
    """A pytest plugin that remembers the first failure."""

    def __init__(self) -> None:
        self.test, self.how, self.collected = "", "", True

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        if not self.test:
            self.test, self.how = report.nodeid, call.excinfo.typename
            self.collected = hasattr(report, "when")


def run_tests(copy: Path, tests: Sequence[str], cache: Path, log: Path, answer: Connection) -> None:
    """pytest on the copy, in this process; sends (exit code, witness, where accord was imported from)."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    os.environ.update(
        PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1", NUMBA_CACHE_DIR=str(cache), TMPDIR=str(log.parent)
    )
    tempfile.tempdir = None  # forget the one that the parent found
    sys.path.insert(0, str(copy))  # before the checkout, which an editable install puts there
    sys.dont_write_bytecode = True
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = str(cache)  # type: ignore[attr-defined]
    import pytest
    from hypothesis import Phase, settings

    settings.register_profile("mutants", database=None, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutants")  # red is enough: to look for the smallest example takes half a minute
    witness = Witness()
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    code = int(pytest.main([*options, *tests], plugins=[witness]))
    answer.send((code, witness, str(importlib.import_module("accord").__file__)))


# ---------------------------------------------------------------------------------------- in the parent
@dataclass(frozen=True)
class Task:
    fault: Fault | None
    tests: tuple[str, ...]
    limit: float


@dataclass(frozen=True)
class Outcome:
    task: Task
    verdict: str  # green, red, or broken: the tests could not be run
    by: str  # the test, or what happened
    seconds: float
    log: str


class Worker:
    """A copy of the package and the process that works in it."""

    def __init__(self, folder: Path, original: Path, task: Task) -> None:
        self.folder, self.task, self.start = folder, task, time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        self.copy, self.log = folder / "copy", folder / "log.txt"
        shutil.copytree(original, self.copy)  # with the times of the files, by which numba knows its kernels
        kernels = original.parent / "kernels"
        if task.fault is not None:
            (self.copy / task.fault.file).write_text(task.fault.planted(self.copy), encoding="utf-8")
            if task.fault.file in KERNELS:
                kernels = folder / "kernels"
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.answer, theirs = context.Pipe(duplex=False)
        arguments = (self.copy, task.tests, kernels, self.log, theirs)
        self.process = context.Process(target=run_tests, args=arguments)
        self.process.start()
        theirs.close()

    @property
    def overdue(self) -> bool:
        return time.monotonic() - self.start > self.task.limit

    def end(self) -> Outcome:
        """What came of it; stops what still runs."""
        alive = self.process.is_alive() and not self.answer.poll()
        verdict, by = "red", f"time-out after {self.task.limit:.0f} s"
        if not alive:
            verdict, by = self._verdict()
        self.stop()
        log = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return Outcome(self.task, verdict, by, time.monotonic() - self.start, log)

    def _verdict(self) -> tuple[str, str]:
        try:
            code, witness, imported = self.answer.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            return ("red", f"crash, {signal.Signals(-code).name}") if code < 0 else ("broken", f"exit code {code}")
        if not Path(imported).is_relative_to(self.copy):
            return "broken", f"accord was imported from {imported}, not from the copy"
        if code == 0:
            return "green", imported
        if code == 1 and witness.collected:
            return "red", f"{witness.test} ({witness.how})"
        return "broken", f"{witness.test or 'pytest'} ({witness.how or f'exit code {code}'}): no test could run"

    def stop(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what the tests started too
        self.process.kill()
        self.process.join()
        self.answer.close()


def run_all(tasks: Sequence[Task], jobs: int, folder: Path) -> Iterator[Outcome]:
    """The outcomes as they come, ``jobs`` at a time."""
    waiting, busy = deque(tasks), dict[int, Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                slot = min(set(range(jobs)) - busy.keys())
                busy[slot] = Worker(folder / f"worker{slot}", folder / "original", waiting.popleft())
            wait([w.answer for w in busy.values()], timeout=0.5)
            for slot, worker in list(busy.items()):
                if worker.answer.poll() or not worker.process.is_alive() or worker.overdue:
                    yield worker.end()
                    del busy[slot]
    finally:
        for worker in busy.values():
            worker.stop()


def take_copy(folder: Path, compiled: bool) -> None:
    """The checkout as it is now.  Byte code knows its source by its hash: two writes within a second have one time."""
    original = folder / "original"
    original.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, original / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        elif source.exists():
            shutil.copy2(source, original / name)
    if compiled:
        compile_dir(str(original / "accord"), quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def preload(tests: Sequence[str]) -> None:
    text = "".join((ROOT / test.partition("::")[0]).read_text(encoding="utf-8") for test in tests)
    for word, modules in PRELOADED.items():
        if word in text:
            for module in modules:
                with suppress(ModuleNotFoundError):
                    importlib.import_module(module)


def require_green(tests: Sequence[str], jobs: int, folder: Path) -> None:
    """Raises Mistake where a test fails without any fault."""
    start = time.monotonic()
    parts = [tuple(tests[i::jobs]) for i in range(min(jobs, len(tests)))]
    for outcome in run_all([Task(None, part, 3600.0) for part in parts], jobs, folder):
        if outcome.verdict != "green":
            print(outcome.log[-3000:])
            raise Mistake(f"without any fault: {outcome.by}; fix that first.")
    print(f"without a fault: green, {len(tests)} files and tests, {time.monotonic() - start:.0f} s", flush=True)


def run(faults: Sequence[Fault], jobs: int, limit: float) -> int:
    """Prints the table; 0 where every fault was caught, 1 otherwise."""
    start = time.monotonic()
    tests = sorted({test for fault in faults for test in fault.tests})
    with tempfile.TemporaryDirectory(prefix="accord-mutants-") as name:
        folder = Path(name).resolve()
        take_copy(folder, compiled=len(faults) > 10)
        preload(tests)
        require_green(tests, jobs, folder)
        width, caught, lost = max(len(f.name) for f in faults), 0, []
        print(f"\n{'':>7}  {'fault':<{width}}  {'s':>5}  caught by", flush=True)
        tasks = [Task(fault, fault.tests, limit) for fault in faults]
        for number, outcome in enumerate(run_all(tasks, jobs, folder), 1):
            fault = outcome.task.fault
            assert fault is not None
            by = outcome.by.removeprefix("tests/")
            if outcome.verdict == "red":
                caught += 1
            else:
                by = "NOTHING: it survives" if outcome.verdict == "green" else f"NOTHING: {by}"
                lost.append(fault)
            print(f"{number:>3}/{len(faults):<3}  {fault.name:<{width}}  {outcome.seconds:5.1f}  {by}", flush=True)
    print(f"\n{time.monotonic() - start:.0f} s")
    for fault in lost:
        print(f"not caught: {fault.name} in {fault.file}: {fault.wrong} (tried: {', '.join(fault.tests)})")
    print(f"{caught} of {len(faults)} caught")
    return 1 if lost else 0


def chosen(faults: list[Fault], only: Sequence[str], sample: int, seed: int) -> list[Fault]:
    """Raises Mistake for a name that is not in the list."""
    if missing := set(only) - {f.name for f in faults}:
        raise Mistake(f"no fault is named {', '.join(sorted(missing))}; --list shows the names.")
    faults = [f for f in faults if not only or f.name in only]
    return sorted(random.Random(seed).sample(faults, min(sample, len(faults))), key=faults.index) if sample else faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Plants faults in a copy of the package; every one must turn a test red."
    )
    parser.add_argument("--faults", type=Path, default=Path(__file__).with_name("faults.yaml"), help="the list")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time (default: the cores)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these faults alone")
    parser.add_argument("--sample", type=int, default=0, metavar="K", help="K faults drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300.0, metavar="S", help="seconds for a fault; a hang is caught")
    parser.add_argument("--list", action="store_true", help="show the faults and stop")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # on the way out workers are stopped and copies removed
    try:
        faults = chosen(load(options.faults), options.only, options.sample, options.seed)
        for fault in faults:
            require_fit(fault)
        if options.list:
            for fault in faults:
                print(f"{fault.name}\n    {fault.file}: {fault.wrong}")
            print(f"{len(faults)} faults")
            return 0
        return run(faults, max(1, options.jobs), options.limit)
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
