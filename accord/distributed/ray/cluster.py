"""A connection to a Ray cluster: one that runs elsewhere, or one on this machine that lasts as long as the run.

Whoever may connect to a Ray cluster may run code on it, so token authentication is on: a cluster that is started here gets
a token of its own, which only its processes know.  Usage statistics and the dashboard are off.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from accord.errors import UserError
from accord.io.installation import install_command
from accord.registry.manifest import versions

REACH_SECONDS = 5.0
"""How long the address of a cluster may take to accept a connection."""
ASK_SECONDS = 120.0
"""How long a node may take to say which versions it has."""


@dataclass(frozen=True, slots=True)
class Node:
    """A live node of the cluster."""

    id: str
    host: str
    cpus: float
    gpus: float


def require_ray() -> ModuleType:
    """Ray, with its settings made before it reads them.  Raises UserError where it is not installed."""
    if find_spec("ray") is None:
        raise UserError(f"rollouts and stages on other machines need Ray: {install_command('ray')}.")
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without GPUs keeps the variables as they are
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_health_check_timeout_ms": "60000",  # by default 10 s, after which a busy node counts as lost
        "RAY_worker_niceness": "0",  # by default 15: on a busy machine workers would get almost no time
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    ray = import_module("ray")
    _read_environment()
    return ray


def _read_environment() -> None:
    """Has Ray read its variables again: it does so when it is imported, which a user's module may have done before."""
    import ray

    internals: Any = ray._raylet
    internals.Config.initialize("")
    internals.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def connected(address: str, key: str = "rollout.address") -> Iterator[list[Node]]:
    """The nodes of the cluster at ``address``, connected until the end of the block.

    ``address``: ``HOST:PORT``; ``auto``: the cluster that RAY_ADDRESS names or that runs on this machine; empty: one with the
    CPUs of this machine, which ends with the block or with this process.  A connection that exists already is used.
    ``key`` names the setting in complaints.  Raises UserError where the cluster cannot be reached, refuses the token, or runs
    other versions than this process.
    """
    ray = require_ray()
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address and require_reachable(address, key) != there:
            raise UserError(f"{key}={address}: this process is connected to another cluster already, at {there}.")
        yield nodes()
        return
    with _environment(**({} if address else _token())):
        if address:
            _join(ray, address, key)
        else:
            _start(ray)
        try:
            require_same_versions(key)
            yield nodes()
        finally:
            ray.shutdown()


def _start(ray: ModuleType) -> None:
    """Starts a cluster on this machine, whose processes end with this one."""
    with _environment(PYTHONPATH=_search_path(), RAY_ADDRESS=None):
        _read_environment()
        _init(ray, address="local", num_cpus=os.cpu_count() or 1, include_dashboard=False)


def _token() -> dict[str, str]:
    """The environment variable with a token of its own, unless the user has set one or opted out."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return {} if given or os.environ["RAY_AUTH_MODE"] != "token" else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _join(ray: ModuleType, address: str, key: str) -> None:
    """Connects to a cluster that runs already."""
    found = require_reachable(address, key)
    try:
        _init(ray, address=found)
    except ray.exceptions.AuthenticationError:
        raise UserError(
            f"{key}={address}: the cluster at {found} refuses this process's token; give its own in RAY_AUTH_TOKEN, or the"
            " path of a file with it in RAY_AUTH_TOKEN_PATH ('ray get-auth-token' prints it there)."
        ) from None
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
        raise UserError(f"{key}={address}: {found} does not answer as a Ray cluster ({_first_line(error)}).") from None


def require_reachable(address: str, key: str) -> str:
    """``HOST:PORT`` of the cluster at ``address``.  Raises UserError where nothing accepts a connection there."""
    found = _where(address, key)
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{key}={address}: no cluster can be reached at {found} ({reason}); start one there with 'ray start --head"
            " --port 6379', or correct the address."
        ) from None
    return found


def _where(address: str, key: str) -> str:
    """``HOST:PORT``, for ``auto`` that of the running cluster."""
    found = address
    if address == "auto":
        found = os.environ.get("RAY_ADDRESS", "")
        if not found:
            with suppress(OSError):
                found = (Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster").read_text().strip()
        if not found:
            raise UserError(
                f"{key}=auto: no Ray cluster runs on this machine and RAY_ADDRESS is not set; start one with 'ray start --head',"
                f" give its address as HOST:PORT, or leave {key} empty for one that lasts as long as the run."
            )
    if "://" in found:
        raise UserError(f"{key}={address}: {found} is not of the form HOST:PORT, for example 10.0.0.1:6379.")
    return found if ":" in found else f"{found}:6379"


def _init(ray: ModuleType, **options: Any) -> None:
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: (
        None
    )  # Ray's paragraphs about lost workers; ``Pool`` says it in a sentence


@contextmanager
def _environment(**changes: str | None) -> Iterator[None]:
    """Environment variables set or removed for the block."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _search_path() -> str:
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


# ------------------------------------------------------------------------------------- what the cluster has
def nodes() -> list[Node]:
    """The nodes that are alive."""
    import ray

    return [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            float(node["Resources"].get("CPU", 0)),
            float(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if _answers(node)
    ]


def is_reachable(node: str) -> bool:
    """Whether the node with this id is alive."""
    return node in {found.id for found in nodes()}


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether a node's port accepts a connection: that of a lost node does not, long before the cluster notices."""
    try:
        if node["Alive"]:
            socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), 1.0).close()
    except OSError:
        return False
    return bool(node["Alive"])


def require_cpus(found: list[Node], workers: int, cpus: float = 1.0, key: str = "rollout.workers") -> None:
    """Raises UserError where ``workers`` of ``cpus`` CPUs each do not fit into the cluster; none is split over nodes."""
    room = sum(int(node.cpus / cpus + 1e-9) for node in found)
    if workers > room:
        have = f"{sum(node.cpus for node in found):g} CPUs on {len(found)} node{'s' * (len(found) > 1)}"
        each = "one" if cpus == 1 else f"{cpus:g}"
        raise UserError(
            f"{key}={workers}: every worker takes {each} of the cluster's CPUs, and it has {have}; use at most {room} workers, or"
            " add nodes."
        )


@cache
def code_digest() -> str:
    """A digest of accord's own source files, which differs where a checkout does."""
    folder, state = Path(__file__).parents[2], hashlib.blake2b(digest_size=8)
    for path in sorted(folder.rglob("*.py")):
        state.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return state.hexdigest()


def require_same_versions(key: str) -> None:
    """Raises UserError where a node has other versions of accord, torch or Python, or another checkout of accord."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mine = {**versions(), "accord's code": code_digest()}

    def there() -> dict[str, str]:  # within a function, so that it is sent whole and not looked up in the node's accord
        from importlib.util import find_spec

        if find_spec("accord") is None:
            return {"accord": "none"}
        from accord.registry.manifest import versions

        try:
            from accord.distributed.ray.cluster import code_digest
        except ImportError:
            return versions()
        return {**versions(), "accord's code": code_digest()}

    asked = [
        (
            node.host,
            ray.remote(there)
            .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
            .remote(),
        )
        for node in nodes()
    ]
    for host, reference in asked:
        try:
            theirs = ray.get(reference, timeout=ASK_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise UserError(f"{key}: node {host!r} has not answered within {ASK_SECONDS:g} s; remove it.") from None
        except ray.exceptions.RayError as error:
            raise UserError(f"{key}: node {host!r} cannot run accord ({_first_line(error)}).") from None
        for name, version in mine.items():
            if theirs.get(name) != version:
                raise UserError(
                    f"{key}: node {host!r} has {name} {theirs.get(name, 'none')} and this process has {version}; install the"
                    " same on every node."
                )
