"""A simulated Ray cluster of two nodes on this machine, with token authentication."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).parents[1])


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Two nodes of two CPUs each, and this process connected to them; its address is ``cluster.address``."""
    if find_spec("ray") is None:
        pytest.skip("needs the extra ray")
    from accord.distributed.ray.cluster import require_ray

    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": ROOT}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**variables, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        ray = require_ray()
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        try:
            made.add_node(num_cpus=2)
            ray.init(address=made.address, log_to_driver=False, logging_level="error")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
