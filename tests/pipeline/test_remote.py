"""Stages on the nodes of a cluster leave what they leave on one machine, with a shared disk and without, killed or not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accord.cli import main
from accord.distributed.ray.cluster import nodes as live_nodes
from accord.pipeline.host import StageHost
from accord.pipeline.orchestrator import Options, run_pipeline
from accord.pipeline.remote import RemoteStage, only_grows

Command = Callable[..., subprocess.CompletedProcess[str]]
Digests = Callable[[Path], dict[str, str]]
PIPELINE = """
seed: 0
threads: 1
device: cpu
stages:
  demo: { set: { base_rows: 60, sft_rows: 24, preference_rows: 16, heldout_base_rows: 8, heldout_sft_rows: 8 } }
  base:
    inputs: { data.train: demo }
    set: { model.d_model: 32, model.n_layers: 1, training.batch_size: 4, save_every: 2, log_every: 1, data.limit: 24,
           model.base_model: transformer }
  sft:
    for: { rate: [0.001, 0.002] }
    inputs: { model.base_model: base, data.train: demo }
    set: { training.learning_rate: "{rate}", data.limit: 16, training.batch_size: 4, save_every: 2, log_every: 1,
           training.num_epochs: 30 }
"""


def run(file: Path, place: Path, **options: Any) -> dict[str, Any]:
    """Runs in a folder; some files hold the paths below it, which are the same in each."""
    place.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run_pipeline(file, ["out=out", "logs=logs"], Options(**options))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline") / "small.yaml"
    path.write_text(PIPELINE)
    return path


@pytest.fixture(scope="module")
def here(file: Path) -> Path:
    """The folder of a run on one machine."""
    run(file, file.parent / "here")
    return file.parent / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The folder of a run on a cluster."""
    return tmp_path / "there"


def without_paths(digests: dict[str, str]) -> dict[str, str]:
    """The .pt files hold the config, with the paths of the machine that wrote them."""
    return {name: digest for name, digest in digests.items() if not name.endswith(".pt")}


@pytest.fixture
def apart(cluster: Any, tmp_path: Path) -> Iterator[Path]:
    """Two more nodes with disks of their own, and all others busy; the folder of their workspaces."""
    import ray

    own = {"num_cpus": 2, "resources": {"apart": 1}}
    nodes = [cluster.add_node(**own, env_vars={"ACCORD_WORKSPACE": str(tmp_path / name)}) for name in ("a", "b")]
    alive = {node.id for node in live_nodes()}
    plain = [n["NodeID"] for n in ray.nodes() if n["NodeID"] in alive and "apart" not in n["Resources"]]

    class Busy:
        pass

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    held = [ray.remote(Busy).options(num_cpus=2, scheduling_strategy=Affinity(n, soft=False)).remote() for n in plain]
    ray.get([actor.__ray_ready__.remote() for actor in held], timeout=120)
    yield tmp_path
    for actor in held:
        ray.kill(actor)
    for node in nodes:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


def events_of(place: Path, name: str = "") -> list[str]:
    rows = [json.loads(line) for line in (place / "out/journal.jsonl").read_text().splitlines()]
    return [row["event"] for row in rows if not name or row["stage"] == name]


def lineage(path: Path) -> str:
    """Its text, without the moments at which models were made."""
    return re.sub(r'"[^"]*T[^"]*\+00:00"', "", path.read_text())


def files_of(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if "tfevents" not in p.name)


def test_a_shared_disk_is_used_and_results_are_those_of_one_machine(
    cluster: Any, file: Path, here: Path, there: Path, digests: Digests
) -> None:
    run(file, there, on="ray")
    assert digests(there / "out") == digests(here / "out")
    assert len(digests(there / "out")) > 6
    rows = [json.loads(line) for line in (there / "out/journal.jsonl").read_text().splitlines()]
    assert os.getpid() not in {row["pid"] for row in rows}
    assert not list((there / "out").glob(".*"))
    run(file, there, on="ray")  # nothing is left to do
    assert len(events_of(there)) == len(rows) == 8


def test_without_a_shared_disk_files_are_moved_by_digest_and_a_killed_run_resumes(
    apart: Path, cluster: Any, file: Path, here: Path, there: Path, digests: Digests, environment: dict[str, str]
) -> None:
    there.mkdir()
    words = [sys.executable, "-m", "accord.cli", "run", str(file), "--on", f"ray={cluster.address}"]
    child = subprocess.Popen([*words, "out=out", "logs=logs"], env=environment, cwd=there, stdout=subprocess.DEVNULL)
    state = there / "out/sft_rate-0.001/state.pt"
    while not state.exists() and child.poll() is None:
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert state.exists()
    assert "step" in (state.parent / "progress.json").read_text()
    run(file, there, on="ray")
    assert events_of(there, "sft_rate-0.001") == ["started", "resumed", "finished"]
    assert without_paths(digests(there / "out")) == without_paths(digests(here / "out"))
    for name in ("base", "sft_rate-0.002"):
        records = [json.loads((place / f"out/{name}/done.json").read_text()) for place in (here, there)]
        assert records[0]["sources"] == records[1]["sources"]
        assert files_of(there / "out" / name) == files_of(here / "out" / name)
        assert files_of(there / "logs" / name) == files_of(here / "logs" / name)
        for picture in (there / "logs" / name).glob("*.svg"):
            assert picture.read_text().count("<svg") == 1, "a picture is replaced, not grown"
        lineages = [lineage(place / f"out/{name}/model/lineage.json") for place in (here, there)]
        assert lineages[0] == lineages[1]
    steps = [json.loads(x)["step"] for x in (there / "logs/sft_rate-0.001/metrics.jsonl").read_text().splitlines()]
    assert [s for s in steps if s] == sorted(steps)[steps.count(0) :]
    assert list(apart.glob("[ab]/inputs/*")), "inputs were sent to a workspace"


def test_a_stage_goes_on_elsewhere_when_its_node_is_removed(
    apart: Path, cluster: Any, file: Path, here: Path, there: Path, digests: Digests, capsys: pytest.CaptureFixture[str]
) -> None:
    def remove() -> None:
        while not list((there / "out").glob("sft*/state.pt")):
            time.sleep(0.02)
        busy = next(name for name in ("a", "b") if list(apart.glob(f"{name}/stages/*/sft*/state.pt")))
        own = [(node, node._ray_params.env_vars or {}) for node in cluster.worker_nodes]
        cluster.remove_node(
            next(node for node, variables in own if variables.get("ACCORD_WORKSPACE", "").endswith(f"/{busy}")),
            allow_graceful=False,
        )

    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    run(file, there, on="ray")
    thread.join()
    assert "its node was lost; it resumes from its last saved state on another node" in capsys.readouterr().out
    assert without_paths(digests(there / "out")) == without_paths(digests(here / "out"))


def test_a_log_that_was_replaced_is_fetched_whole_and_one_that_has_grown_from_there_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here, host = tmp_path / "there", tmp_path / "here", StageHost()
    for folder in (there, here):
        folder.mkdir()
    read: list[int] = []

    def call(method: str, *arguments: Any) -> Any:
        read.append(arguments[2])
        return getattr(host, method)(*arguments)

    monkeypatch.setattr("accord.pipeline.remote.logs", lambda config, kind: here)
    stage: Any = RemoteStage.__new__(RemoteStage)
    stage._task = SimpleNamespace(directory=tmp_path / "out", config=None, kind="sft")
    stage._opened, stage._seen, stage._remote = True, ({}, {}), SimpleNamespace(call=call)
    stage._places = lambda: (str(tmp_path / "none"), str(there))
    log, replaced = there / "metrics.jsonl", there / ".new"

    def fetched() -> str:
        stage._fetch([{}, host.listing(str(there))])
        return (here / log.name).read_text()

    log.write_text("1\n2\n")
    assert fetched() == "1\n2\n"
    with log.open("a") as file:
        file.write("3\n")
    assert fetched() == "1\n2\n3\n"
    assert read == [0, 4]
    replaced.write_text("1\nb\nc\nd\n")  # longer than what was fetched
    replaced.rename(log)
    assert fetched() == "1\nb\nc\nd\n"


def test_logs_are_fetched_from_where_they_ended_and_pictures_as_a_whole() -> None:
    logs = ("sft.log", "metrics.jsonl", "ledger.jsonl", "events.out.tfevents.1.host", "sft.svg")
    assert [name for name in logs if not only_grows(name)] == ["sft.svg"]


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ("dask", "--on dask: write --on ray"),
        ("ray=", "--on ray=: write --on ray"),
        ("ray=127.0.0.1:1", "--on ray=127.0.0.1:1: no cluster can be reached at 127.0.0.1:1"),
        ("ray=http://x", "is not of the form HOST:PORT"),
    ],
)
def test_a_wrong_cluster_is_one_sentence_and_nothing_is_written(
    file: Path, there: Path, capsys: pytest.CaptureFixture[str], on: str, words: str
) -> None:
    assert main(["run", str(file), "--on", on, f"out={there}"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not there.exists()


def test_a_stage_that_fits_on_no_node_is_refused_before_work(cluster: Any, file: Path, there: Path) -> None:
    with pytest.raises(Exception, match=r"stage 'demo': takes 64 CPUs of one node .* largest has 2"):
        run_pipeline(file, [f"out={there}", "threads=64"], Options(on="ray"))
