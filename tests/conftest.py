"""A world of a few rows and two models of a few thousand weights, runs and stages on them, and a registry for each test."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from torch import Tensor

from accord.config.load import build
from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.models.reward import RewardModel, ScalarHead
from accord.pipeline.stage import Outcome, run_stage
from accord.runtime.run import Run, StageIdentity
from accord.stage_kinds.table import STAGE_KINDS
from tests import postgresql, ray_cluster
from tests.hub_server import NEW, OLD, Hub, copied, serving

REGISTRY = "ACCORD_REGISTRY"
REWARDS = """
def share_of_a(prompts, replies):
    return [reply.count("a") / max(len(reply), 1) for reply in replies]

def brevity(prompts, replies):
    return [-float(len(reply)) for reply in replies]

def nan(prompts, replies):
    return [float("nan")] * len(replies)
"""

ROWS = [
    ("what is red?", "fire is.", "no."),
    ("what is blue?", "the sea is.", "i do not know"),
    ("what is red?", "a rose is.", "grass, maybe"),
    ("name a cat", "tom", "zzz"),
    ("and a dog?", "rex is one", "qq"),
    ("two and two?", "four.", "5 or 6, who can say?"),
    ("hi", "hello!", "x"),
    ("what is blue?", "the sky.", "7"),
]


@dataclass(frozen=True)
class World:
    """Paths, as a resolved config holds them."""

    mamba: str
    transformer: str
    reward: str  # a reward model on the Mamba
    base: str
    sft: str
    preferences: str
    prompts: str


def tiny(family: str, seed: int = 0) -> Backbone:
    tokenizer = small_tokenizer()
    torch.manual_seed(seed)
    return small_backbone(family, 32, 2, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    for family in ("mamba", "transformer"):
        tiny(family).save(str(folder / family))
        small_tokenizer().save(folder / family)
    torch.manual_seed(5)
    (folder / "reward").mkdir()
    RewardModel(tiny("mamba", 1), ScalarHead(32), "mean").save(str(folder / "reward"))
    small_tokenizer().save(folder / "reward")
    base: list[dict[str, Any]] = [{"text": f"{good} {bad}"} for _, good, bad in ROWS]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello."}]
    return World(
        str(folder / "mamba"),
        str(folder / "transformer"),
        str(folder / "reward"),
        write_rows(folder / "base.jsonl", [*base, {"messages": turns}]),
        write_rows(folder / "sft.jsonl", [{"prompt": p, "completion": good} for p, good, _ in ROWS]),
        write_rows(folder / "preferences.jsonl", [{"prompt": p, "chosen": g, "rejected": b} for p, g, b in ROWS]),
        write_rows(folder / "prompts.jsonl", [{"prompt": p} for p, _, _ in ROWS]),
    )


@pytest.fixture(scope="session")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A module of reward functions, by its name."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "rewards_of_the_tests.py").write_text(REWARDS, encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield "rewards_of_the_tests"
    sys.path.remove(str(folder))


Stage = Callable[..., Outcome]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Runs a stage: ``stage(kind, values, name=…, resume=…)``; results are in out/<name>, logs in logs/<name>."""

    def run(kind: str, values: Mapping[str, Any], name: str = "", *, resume: bool = False, **stage: Any) -> Outcome:
        given = {"name": name or kind, "out": str(tmp_path / "out"), "logs": str(tmp_path / "logs")}
        given = {**given, "device": "cpu", "log_every": 1, "seed": 7, **values, **stage}
        return run_stage(kind, build(STAGE_KINDS[kind].settings, given, {}, "the test"), resume=resume, reuse=False)

    return run


@pytest.fixture
def open_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run outside any pipeline: results in ``folder``/out/<name>, logs in ``folder``/logs/<name>."""

    def make(
        name: str = "run",
        *,
        folder: Path = tmp_path,
        seed: int = 0,
        log_every: int = 1,
        save_every: int = 100,
        resume: bool = False,
        before_first_write: Callable[[], None] = lambda: None,
        **provenance: Any,
    ) -> Run:
        identity = StageIdentity(name, folder / "out" / name, folder / "logs" / name, seed, **provenance)
        return Run(identity, log_every, save_every, resume, before_first_write=before_first_write)

    return make


@pytest.fixture
def new_run(open_run: Callable[..., Run]) -> Iterator[Callable[..., Run]]:
    """A run without a stage around it, closed at the end of the test."""
    made: list[Run] = []

    def make(name: str = "run", resume: bool = False, save_every: int = 100) -> Run:
        made.append(open_run(name, resume=resume, save_every=save_every))
        return made[-1]

    yield make
    for run in made:
        run.__exit__()


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[str], list[dict[str, float]]]:
    """The rows of a stage's metrics.jsonl."""

    def read(name: str) -> list[dict[str, float]]:
        text = (tmp_path / "logs" / name / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    return read


@pytest.fixture(scope="session")
def weights_of() -> Callable[[Path], dict[str, Tensor]]:
    """The tensors of a .pt as specified: a plain safe load."""

    def read(path: Path) -> dict[str, Tensor]:
        state: dict[str, Tensor] = torch.load(path, weights_only=True)["model_state_dict"]
        return state

    return read


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Backbone]:
    def make(family: str, seed: int = 0) -> Backbone:
        backbone = tiny(family, seed)
        backbone.eval()
        return backbone

    return make


# ------------------------------------------------------------------------------------- ranks
class Group:
    """Processes on gloo that run functions together."""

    def __init__(self, folder: Path, size: int) -> None:
        server = Path(__file__).parent / "distributed" / "rank_server.py"
        root = str(Path(__file__).parent.parent)
        shared = {**os.environ, "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1", "TIMEOUT": "120", "PYTHONPATH": root}
        self.ranks = [
            subprocess.Popen(
                [sys.executable, str(server)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCORD_RENDEZVOUS": str(folder / "port")},
            )
            for rank in range(size)
        ]

    def __call__(self, module: str, function: str, **arguments: Any) -> list[Any]:
        """The results of all ranks.  ``module``: that of the function.  Results and arguments are JSON values."""
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write(json.dumps({"module": module, "function": function, "arguments": arguments}) + "\n")
            rank.stdin.flush()
        answers = []
        for rank in self.ranks:
            assert rank.stdout is not None
            answers.append(json.loads(rank.stdout.readline() or '{"error": "the rank has ended"}'))
        errors = [answer["error"] for answer in answers if "error" in answer]
        assert not errors, "\n".join(errors)
        return [answer["result"] for answer in answers]

    def close(self) -> None:
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.close()
        for rank in self.ranks:
            rank.wait(300)  # a busy machine takes its time


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Two ranks, started once; tests that use them belong to the xdist group ``ranks``."""
    both = Group(tmp_path_factory.mktemp("ranks"), 2)
    yield both
    both.close()


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Group]:
    """Four ranks, for the one test that needs them."""
    all_four = Group(tmp_path, 4)
    yield all_four
    all_four.close()


# ------------------------------------------------------------------------------------- a Ray cluster
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on the cluster run one after another, in one process of xdist."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two simulated nodes of two CPUs each, started once, and this process connected to them; skips where Ray is not there."""
    with ray_cluster.two_nodes() as made:
        yield made


@pytest.fixture
def node(cluster: Any) -> Iterator[Any]:
    """A third node with the resource ``third`` and the variable THIRD_NODE, of which a test may make what it likes."""
    added = cluster.add_node(num_cpus=1, resources={"third": 1}, env_vars={"THIRD_NODE": "1"})
    yield added
    if added in cluster.worker_nodes:
        cluster.remove_node(added, allow_graceful=False)


# ------------------------------------------------------------------------------------- the Hugging Face hub
@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, without a connection, and an empty working directory."""
    import huggingface_hub.constants as settings

    from accord.models.hub import pinned_model

    root = tmp_path / "hf" / "hub"
    root.mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(settings, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    pinned_model.cache_clear()
    return root


@pytest.fixture
def model_hub(hub_cache: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server of org/tiny (a Mamba; its tag v1 is a Transformer; and files that no model needs), org/reward (a reward
    model), and org/pickled, which has no safetensors."""
    import huggingface_hub.constants as settings

    new, old = copied(world.mamba, tmp_path / "new"), copied(world.transformer, tmp_path / "old")
    (new / "pytorch_model.bin").write_bytes(b"pickle")
    (new / "consolidated.safetensors").write_bytes(b"twice the weights")
    (new / "modeling_own.py").write_text("raise SystemExit")
    (new / "onnx").mkdir()
    (new / "onnx" / "model.safetensors").write_bytes(b"other weights")
    pickled = copied(world.mamba, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    commits = {"org/tiny": {NEW: new, OLD: old}, "org/pickled": {NEW: pickled}, "org/reward": {NEW: Path(world.reward)}}
    refs = {name: {"main": NEW} for name in commits}
    refs["org/tiny"] |= {"v1": OLD, "refs/pr/1": OLD}
    with serving(commits, refs) as served:
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(settings, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(settings, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


# ------------------------------------------------------------------------------------- registry
@pytest.fixture(scope="session", autouse=True)
def _registry_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that live longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(REGISTRY, str(tmp_path_factory.mktemp("registry") / "registry.sqlite"))
        yield


@pytest.fixture(autouse=True)
def _registry_of_the_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REGISTRY, str(tmp_path_factory.mktemp("registry") / "registry.sqlite"))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL server, started once; skips the test where there is none."""
    with postgresql.server() as template:
        yield template


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """The URL of an empty place for a store on the PostgreSQL server."""
    return postgresql.new_place(postgresql_server, f"test_{uuid4().hex[:12]}")
