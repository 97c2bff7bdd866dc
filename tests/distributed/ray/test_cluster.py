"""A cluster is started with a token and without statistics, and a wrong one is refused in one sentence before any work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accord.distributed.ray.cluster import Node, require_cpus, require_reachable, require_same_versions
from accord.errors import UserError

STARTED = """
import json, os, subprocess, sys
from accord.distributed.ray.cluster import connected

with connected("") as nodes:
    import ray
    address = ray.get_runtime_context().gcs_address
    stranger = "import ray; ray.init(address=%r, log_to_driver=False)" % address
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": sys.argv[1]}
    bare = subprocess.run([sys.executable, "-c", stranger], env=others, capture_output=True, text=True, timeout=120)
    wrong = {**others, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    guess = subprocess.run([sys.executable, "-c", stranger], env=wrong, capture_output=True, text=True, timeout=120)
    said = {"cpus": sum(node.cpus for node in nodes), "token": len(os.environ["RAY_AUTH_TOKEN"]),
            "statistics": os.environ["RAY_USAGE_STATS_ENABLED"], "dashboard": ray._private.worker.global_worker.node.webui_url,
            "bare": [bare.returncode, "AuthenticationError" in bare.stderr],
            "guess": [guess.returncode, "AuthenticationError" in guess.stderr]}
said["left"] = "RAY_AUTH_TOKEN" in os.environ
print(json.dumps(said))
"""


def test_a_started_cluster_refuses_who_has_not_its_token(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["bare"] == [1, True]
    assert said["guess"] == [1, True]
    assert said["token"] == 64
    assert not said["left"], "another cluster has a token of its own"
    assert said["statistics"] == "0"
    assert not said["dashboard"]
    assert said["cpus"] == os.cpu_count()
    assert not (tmp_path / ".ray" / "auth_token").exists()


def test_a_node_with_another_checkout_of_accord_is_named(cluster: Any, tmp_path: Path) -> None:
    require_same_versions("rollout.address")
    other = tmp_path / "accord"
    other.mkdir()
    for name in ("__init__", "distributed/__init__", "distributed/ray/__init__", "registry/__init__"):
        (other / name).parent.mkdir(exist_ok=True, parents=True)
        (other / f"{name}.py").write_text("")
    (other / "distributed/ray/cluster.py").write_text("def code_digest():\n    return 'another'\n")
    (other / "registry/manifest.py").write_text((Path("accord/registry/manifest.py")).read_text().split("def publish")[0]
        .replace("from accord", "# from accord") + "\ndef versions():\n    return {'accord': version('accord'), 'torch':"
        " version('torch'), 'python': platform.python_version()}\n")  # fmt: skip
    check = f"from accord.distributed.ray.cluster import connected\nwith connected({cluster.address!r}): pass"
    here = tmp_path / "here"
    here.mkdir()
    added = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    try:
        done = subprocess.run([sys.executable, "-c", check], cwd=here, capture_output=True, text=True, timeout=300)
    finally:
        cluster.remove_node(added, allow_graceful=False)
    last = done.stderr.splitlines()[-1]
    assert re.match(
        r"accord.errors.UserError: rollout.address: node '.*' has accord's code another and this process", last
    )


def test_more_workers_than_cpus_are_refused() -> None:
    nodes = [Node("a", "a", 2.0, 0.0), Node("b", "b", 3.0, 0.0)]
    require_cpus(nodes, 5)
    require_cpus(nodes, 2, 2.0)
    require_cpus(nodes, 10, 0.5)
    with pytest.raises(
        UserError, match=r"rollout.workers=6: .* has 5 CPUs on 2 nodes; use at most 5 workers, or add nodes"
    ):
        require_cpus(nodes, 6)
    with pytest.raises(
        UserError, match=r"every worker takes 2 of .*; use at most 2 workers"
    ):  # none is split over nodes
        require_cpus(nodes, 3, 2.0)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "127.0.0.1:1",
            r"rollout.address=127.0.0.1:1: no cluster can be reached at 127.0.0.1:1 \(Connection refused\)",
        ),
        ("no.such.host.invalid:6379", r"no cluster can be reached at no.such.host.invalid:6379"),
        ("127.0.0.1:port", r"no cluster can be reached at 127.0.0.1:port"),
        ("ray://127.0.0.1:10001", r"ray://127.0.0.1:10001 is not of the form HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_one_sentence(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        require_reachable(address, "rollout.address")
    assert "\n" not in str(caught.value)
