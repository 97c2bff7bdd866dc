"""Every trainer killed by SIGKILL, at any instant and in the middle of a write: the resumed run ends the same.

The runs are forks of one warm process (this file, run as a script), so that each costs its own work and no imports.
Three kinds of instants: when a run has had a share of its processor time, wherever it stands then; just before one of
its changes to a folder (a rename, a removal, a new folder); and when some bytes of a file are written and others not.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the processor time as Linux has it")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
LEFTOVER = "read what a kill had left behind: "


# ------------------------------------------------------------------------------------- the warm process
class Counted:
    """A file that counts what is written to it; with a limit, it kills the process when that much is written."""

    def __init__(self, file: Any, limit: int | None, note: Callable[[int], None]) -> None:
        self.file, self.limit, self.note, self.written = file, limit, note, 0

    def write(self, data: Any) -> Any:
        if self.limit is not None and self.written + len(data) >= self.limit:
            self.file.write(data[: self.limit - self.written])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.written += len(data)
        self.note(self.written)
        return self.file.write(data)

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class Watch:
    """Counts what a process does to the files in a folder, and kills it where it was asked to."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.folder, self.job = str(job["folder"]), job
        self.changes: list[str] = []
        self.writes: list[tuple[str, int]] = []  # names without what makes them temporary, bytes

    def start(self) -> None:
        sys.addaudithook(self.hear)
        real = Path.open

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = real(path, mode, *args, **kwargs)
            if mode[0] not in "wa" or not str(path).startswith(self.folder):
                return file
            name = path.name.lstrip(".").removesuffix(".tmp").removesuffix(f".{os.getpid()}")
            if name.endswith(".svg"):  # the only file with the name of the run
                name = "curves.svg"
            place, found = len(self.writes), [n for n, _ in self.writes].count(name)
            self.writes.append((name, 0))

            def note(size: int) -> None:
                self.writes[place] = (name, size)

            chosen = self.job.get("write") == [name, found]
            return Counted(file, self.job["bytes"] if chosen else None, note)

        Path.open = opened  # type: ignore[method-assign,assignment]

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES:
            path, within = str(arguments[0]), arguments[-1]
            if path.startswith(self.folder) or (isinstance(within, int) and within >= 0):
                if self.job.get("change") == len(self.changes):
                    os.kill(os.getpid(), signal.SIGKILL)
                self.changes.append(f"{event} {Path(path).name}")
        elif event == "open" and isinstance(arguments[0], str):
            path, flags = arguments[0], arguments[2]
            reads = not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not os.path.isdir(path)
            if reads and any(path.startswith(old) for old in self.job["leftovers"]):
                os.write(1, f"{LEFTOVER}{path}\n".encode())


def child(job: Mapping[str, Any]) -> NoReturn:
    """Runs a command of the command line to its end, or to the instant it is killed at."""
    from accord.cli import main
    from accord.plots import stage

    stage.SHARE = math.inf  # pictures at every save, so that a run's changes do not depend on the time
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        watch = Watch(job)
        watch.start()
        code = main([*job["argv"], "--debug"])
        Path(job["record"]).write_text(json.dumps({"changes": watch.changes, "writes": watch.writes}))
    except BaseException:
        import traceback

        os.write(1, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        os._exit(code)


def live(job: Mapping[str, Any]) -> dict[str, Any]:
    """Forks a process for the job, kills it once it has used ``seconds`` of processor time, and returns how it ended."""
    pid = os.fork()
    if pid == 0:
        child(job)
    clock = (~pid << 3) | 2  # the kernel's name for the processor time of a process
    seconds = job.get("seconds")
    while seconds is not None and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if time.clock_gettime(clock) >= seconds:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(5e-4)
    _, status, usage = os.wait4(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": usage.ru_utime + usage.ru_stime}


def serve() -> None:
    """One job per line; the first is run in this process, to warm it up."""
    import importlib

    from accord.cli import main
    from accord.stage_kinds.table import STAGE_KINDS

    torch.set_num_threads(1)
    for name in {kind.function_path.partition(":")[0] for kind in STAGE_KINDS.values()}:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the warm-up prints is not an answer
    main(json.loads(sys.stdin.readline())["argv"])
    sys.stdout.flush()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(live(json.loads(line))), file=answers, flush=True)


# ------------------------------------------------------------------------------------- runs
def cases(world: Any, rewards: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every trainer, its kind and the smallest config in which each part of its state matters."""
    schedule = {"schedule": "cosine", "warmup_steps": 2, "learning_rate": 0.01, "weight_decay": 0.01}
    supervised = {"batch_size": 3, "micro_batch_size": 2, "num_epochs": 2, **schedule}
    model = {"base_model": world.mamba, "max_length": 64}
    pairs = {"train": world.preferences, "heldout_fraction": 0.2}
    paired = {**supervised, "batch_size": 2}
    text = {"prompts": world.prompts, "reward": {"source": f"{rewards}:share_of_a"}}
    kl = {"beta": 0.1, "target": 0.02, "horizon": 20}
    steps = {"n_steps": 16, "n_envs": 2, "batch_size": 16, "num_epochs": 2, "total_timesteps": 96}
    replies = {"replies": 4, "samples_per_prompt": 2, "batch_size": 2, "num_epochs": 2, "iterations": 2}
    heads = {"policy": "heads", "base_model": world.mamba, "obs_dim": 32, "hidden_dim": 16, "max_length": 64}
    scorer = {"base_model": world.mamba, "max_length": 96}
    sizes = {"d_model": 32, "n_layers": 1, "max_length": 40}
    return {
        "base": ("base", {"model": sizes, "data": {"train": world.base}, "training": supervised}),
        "sft": ("sft", {"model": model, "data": {"train": world.sft}, "training": supervised}),
        "reward, features": (
            "reward",
            {"model": {**scorer, "input_dim": 32, "hidden_dim": 16}, "data": pairs, "training": paired},
        ),
        "reward, language": (
            "reward",
            {
                "model": {**scorer, "kind": "language"},
                "data": pairs,
                "training": {**paired, "head_learning_rate": 0.05},
            },
        ),
        "dpo": ("dpo", {"model": {**model, "max_length": 96}, "data": pairs, "training": paired}),
        "ppo, heads": (
            "ppo",
            {"model": heads, **text, "kl": kl, "training": steps, "sampling": {"max_new_tokens": 4}},
        ),
        "ppo, language": (
            "ppo",
            {
                "model": {"policy": "language", "critic": "separate", **model},
                **text,
                "kl": kl,
                "training": {**replies, "learning_rate": 0.01, "schedule": "linear"},
                "sampling": {"max_new_tokens": 5, "temperature": 0.8},
            },
        ),
        "ppo, vector": (
            "ppo",
            {
                "model": {"policy": "control", "hidden_dim": 16},
                "environment": "CartPole-v1",
                "normalize": {"observations": True, "rewards": True},
                "evaluation": {"episodes": 1, "every": 32, "max_steps": 20, "curve": False},
                "training": {**steps, "total_timesteps": 128, "learning_rate": 0.01},
            },
        ),
    }


NAMES = tuple(cases(type("W", (), {"__getattr__": lambda self, name: name})(), ""))


@dataclass(frozen=True)
class Life:
    """How a process ended, and, where it came to its end, what it did."""

    killed: bool
    seconds: float  # of processor time
    changes: list[str]
    writes: list[tuple[str, int]]


class Runs:
    """Runs of one stage in a folder, each in processes of its own."""

    def __init__(self, ask: Callable[[Mapping[str, Any]], dict[str, Any]], folder: Path, case: Any) -> None:
        self.ask, self.folder, (self.kind, self.values) = ask, folder, case
        for place in ("out", "logs"):
            (folder / place).mkdir()

    def out(self, name: str) -> Path:
        return self.folder / "out" / name

    def logs(self, name: str) -> Path:
        return self.folder / "logs" / name

    def job(self, name: str, **more: Any) -> dict[str, Any]:
        given = {"name": name, "out": str(self.folder / "out"), "logs": str(self.folder / "logs"), "device": "cpu"}
        given |= {"seed": 7, "log_every": 1, "save_every": 2, **self.values}
        config, log = self.folder / f"{name}.yaml", self.folder / f"{name}.log"
        config.write_text(json.dumps(given), encoding="utf-8")  # which is YAML too
        log.touch()
        files = {"record": str(self.folder / f"{name}.json"), "log": str(log), "folder": str(self.folder)}
        argv = [self.kind, "--config", str(config), "--resume"]
        return {"argv": argv, "leftovers": self.leftovers(name), **files, **more}

    def leftovers(self, name: str) -> list[str]:
        found = [p for top in (self.out(name), self.logs(name)) if top.exists() for p in top.iterdir()]
        return sorted(str(p) for p in found if p.name.startswith("."))

    def live(self, name: str, instant: Mapping[str, Any] | None = None) -> Life:
        """Starts or resumes a run; it ends by itself, or by a kill at the instant."""
        job = self.job(name, **(instant or {}))
        record = Path(job["record"])
        record.unlink(missing_ok=True)
        ended = self.ask(job)
        said = Path(job["log"]).read_text(encoding="utf-8")
        assert ended["code"] in (0, -signal.SIGKILL), f"{instant}:\n{said}"
        assert LEFTOVER not in said, f"{instant}:\n{said}"
        if ended["code"]:
            self.assert_whole(name)
            return Life(True, ended["seconds"], [], [])
        found = json.loads(record.read_text(encoding="utf-8"))
        return Life(False, ended["seconds"], found["changes"], [tuple(w) for w in found["writes"]])

    def assert_whole(self, name: str) -> None:
        """Whatever bears its final name is complete, and may be read."""
        out = self.out(name)
        for path in out.glob("*.pt") if out.exists() else ():
            assert not path.name.startswith(".")
            torch.load(path, weights_only=True)
        for path in out.glob("*.json") if out.exists() else ():
            json.loads(path.read_text(encoding="utf-8"))
        if (out / "model").exists():
            from accord.io.digests import MANIFEST, content_digest

            bare = self.folder / "bare"
            shutil.copytree(out / "model", bare, ignore=shutil.ignore_patterns(MANIFEST))
            manifest = json.loads((out / "model" / MANIFEST).read_text(encoding="utf-8"))
            assert content_digest(bare) == manifest["digest"]
            shutil.rmtree(bare)

    def assert_same_end(self, name: str, expected: str = "whole") -> None:
        """Weights and all else in the final .pt, the artifact, the metrics of every step, and the list of files."""
        names = (name, expected)
        trees = [sorted(p.relative_to(self.out(n)).as_posix() for p in self.out(n).rglob("*")) for n in names]
        for path in sorted(self.out(expected).glob("*.pt")):
            found = torch.load(self.out(name) / path.name, weights_only=True)
            assert not differences(found, torch.load(path, weights_only=True), path.name)
        for path in sorted(self.out(expected).glob("model/*.safetensors")):
            assert (self.out(name) / "model" / path.name).read_bytes() == path.read_bytes(), path.name
        assert set(trees[0]) == set(trees[1]), set(trees[0]) ^ set(trees[1])
        assert not self.leftovers(name)
        lines = [(self.logs(n) / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for n in names]
        assert lines[0] == lines[1]
        ends = [json.loads((self.out(n) / "done.json").read_text(encoding="utf-8")) for n in names]
        assert ends[0]["metrics"] == ends[1]["metrics"]
        assert ends[0]["key"] == ends[1]["key"]


def differences(a: Any, b: Any, where: str) -> list[str]:
    """The places where two trees of plain containers are not bit-exactly equal."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for k in a for found in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for n, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{where}.{n}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype is b.dtype and torch.equal(a, b) else [where]
    return [] if type(a) is type(b) and a == b else [f"{where}: {a!r}, {b!r}"]


@pytest.fixture(scope="module")
def ask(
    world: Any, rewards: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Mapping[str, Any]], dict[str, Any]]]:
    """Hands a job to the warm process."""
    import importlib

    folder = tmp_path_factory.mktemp("warm")
    home = Path(str(importlib.import_module(rewards).__file__)).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(home), *sys.path])}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}  # forks and their threads do not mix
    with (folder / "stderr").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def asked(job: Mapping[str, Any]) -> dict[str, Any]:
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, (folder / "stderr").read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(answer)
        return found

    asked(Runs(asked, folder, cases(world, rewards)["ppo, language"]).job("warm"))
    yield asked
    stdin.close()
    process.wait(timeout=30)
    stdout.close()


# ------------------------------------------------------------------------------------- tests
def instants(whole: Life, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """A third in the middle of a checkpoint, a third before a change to a folder, the rest anywhere; in any order."""
    states = [size for name, size in whole.writes if name == "state.pt"]
    assert len(states) >= 2
    found: list[dict[str, Any]] = []
    for n in range(count):
        if n % 3 == 0:
            place = rng.randrange(len(states))
            found.append({"write": ["state.pt", place], "bytes": rng.randint(1, states[place] - 1)})
        elif n % 3 == 1:
            found.append({"change": rng.randrange(len(whole.changes))})
        else:
            found.append({"seconds": rng.random() * whole.seconds})
    rng.shuffle(found)
    return found


def sooner(instant: Mapping[str, Any]) -> dict[str, Any]:
    return {**instant, **({"seconds": 0.7 * instant["seconds"]} if "seconds" in instant else {})}


def survive(runs: Runs, count: int, seed: int) -> None:
    """Kills runs until all instants are used up: a run is resumed and killed again, and at its end another begins."""
    whole = runs.live("whole")
    begun, name, fresh = 0, "cut0", True
    for instant in instants(whole, count, random.Random(seed)):
        tries = 0
        while not runs.live(name, instant).killed:  # it came to its end before that instant
            runs.assert_same_end(name)
            instant, tries = (sooner(instant) if fresh else instant), tries + 1
            assert tries < 9, f"{instant} never comes"
            begun, fresh = begun + 1, True
            name = f"cut{begun}"
        fresh = False
    assert not runs.live(name).killed
    runs.assert_same_end(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_ends_like_an_uninterrupted_one(
    ask: Any, world: Any, rewards: str, tmp_path: Path, name: str
) -> None:
    survive(Runs(ask, tmp_path, cases(world, rewards)[name]), 3, seed=NAMES.index(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_ten_times_ends_like_an_uninterrupted_one(
    ask: Any, world: Any, rewards: str, tmp_path: Path, name: str
) -> None:
    survive(Runs(ask, tmp_path, cases(world, rewards)[name]), 10, seed=100 + NAMES.index(name))


def copied(runs: Runs, source: str, name: str) -> None:
    for place in (runs.out, runs.logs):
        shutil.copytree(place(source), place(name))


def at_its_end(runs: Runs, place: str) -> Life:
    """Leaves a run "late" that was killed after its last step ("state.pt"), or when all is written but "done.json".

    Returns what is left to do.
    """
    whole = runs.live("whole")
    renamed = max(n for n, change in enumerate(whole.changes) if change.startswith("os.rename") and place in change)
    assert runs.live("late", {"change": renamed + (place == "state.pt")}).killed
    copied(runs, "late", "rest")
    return runs.live("rest")


def faults_of(runs: Runs, instants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Copies of the run "late", each killed at one of the named instants, then ended: those that ended otherwise."""
    faults = []
    for n, (named, instant) in enumerate(instants.items()):
        copied(runs, "late", f"cut{n}")
        assert runs.live(f"cut{n}", instant).killed
        assert not runs.live(f"cut{n}").killed
        try:
            runs.assert_same_end(f"cut{n}")
        except AssertionError as fault:
            faults.append(f"{named}: {str(fault).splitlines()[0]}")
    return faults


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("ppo, vector", "state.pt"),
        pytest.param("sft", "state.pt", marks=pytest.mark.slow),
        pytest.param(
            "sft", "done.json", marks=pytest.mark.slow
        ),  # there the artifact exists already and is written again
    ],
)
def test_a_kill_between_the_last_step_and_the_end_leaves_no_files(
    ask: Any, world: Any, rewards: str, tmp_path: Path, name: str, place: str
) -> None:
    """Before every single change to a folder that is left then: nothing is lost, doubled, or left over."""
    runs = Runs(ask, tmp_path, cases(world, rewards)[name])
    rest = at_its_end(runs, place)
    faults = faults_of(runs, {f"{n}, before {change}": {"change": n} for n, change in enumerate(rest.changes)})
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_a_stage_may_run_twice_and_is_logged_once(
    ask: Any, world: Any, rewards: str, tmp_path: Path, name: str
) -> None:
    """Killed when everything but done.json is written."""
    runs = Runs(ask, tmp_path, cases(world, rewards)[name])
    assert not at_its_end(runs, "done.json").killed
    runs.assert_same_end("rest")


def test_a_kill_in_the_middle_of_any_write_after_a_resume_loses_nothing(
    ask: Any, world: Any, rewards: str, tmp_path: Path
) -> None:
    """Of what a process writes itself; the weights of the artifact are written by safetensors."""
    runs = Runs(ask, tmp_path, cases(world, rewards)["sft"])
    rest = at_its_end(runs, "state.pt")
    names = [name for name, _ in rest.writes]
    instants = {
        f"{n}, in {name}": {"write": [name, names[:n].count(name)], "bytes": size // 2}
        for n, (name, size) in enumerate(rest.writes)
        if size > 1
    }
    faults = faults_of(runs, instants)
    assert not faults, "\n".join(faults)


if __name__ == "__main__":
    serve()
