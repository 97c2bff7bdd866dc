"""Whatever happens to actors, each job's result comes exactly once, and the loss is reported with who, since when and what."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accord.distributed.ray.cluster import Node
from accord.distributed.ray.pool import Job, Pool
from accord.errors import Failed, UserError


class Squares:
    """Squares numbers, and does what a test's job says first."""

    def square(self, number: int, before: str = "", flag: str = "") -> int:
        if before and not Path(flag).exists():  # only in the first actor that has this job
            Path(flag).touch()
            if before == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if before == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep({"sleep": 60, "rest": 2}[before])
        if before == "always":
            os.kill(os.getpid(), signal.SIGKILL)
        if before == "mistake":
            raise UserError("reward.source: gives no number.")
        return number * number


class Silent:
    """An actor that never says that it has started."""

    class __ray_call__:
        @staticmethod
        def remote(_: Any) -> object:
            return object()


class Started(Silent):
    """An actor that has said so."""

    class __ray_call__:
        @staticmethod
        def remote(_: Any) -> None:
            return None


Open = Callable[..., Pool]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def open_pool(cluster: Any, said: list[str]) -> Iterator[Open]:
    import ray

    opened: list[Pool] = []

    def make(workers: int = 2, seconds: float = 60, start_seconds: float = 120, **options: Any) -> Pool:
        actor = ray.remote(Squares).options(num_cpus=1, **options)
        opened.append(Pool(lambda number: actor.remote(), workers, seconds, said.append, start_seconds))
        return opened[-1]

    yield make
    for pool in opened:
        pool.close()


def results(pool: Pool, seconds: float = 120) -> list[int]:
    found: list[int] = []
    end = time.monotonic() + seconds
    while pool.unfinished and time.monotonic() < end:
        found += [value for _, value in pool.collect()]
    assert not pool.unfinished, pool.describe()
    return sorted(found)


def submit(pool: Pool, numbers: int, **first: str) -> None:
    for number in range(numbers):
        more = tuple(first.values()) if number == 2 else ()
        pool.submit(Job(number, "square", (number, *more), f"squaring {number}"))


def test_an_actor_that_is_killed_is_replaced_and_its_job_done_again(
    open_pool: Open, said: list[str], tmp_path: Path
) -> None:
    pool = open_pool()
    submit(pool, 6, before="die", flag=str(tmp_path / "flag"))
    assert results(pool) == [0, 1, 4, 9, 16, 25]
    assert pool.lost == {"died": 1}
    (words,) = said
    assert words.startswith("worker ")
    assert " has died, squaring 2 since " in words
    assert f"process {os.getpid()}" not in words
    assert "another takes its place, and that work is done again" in words


@pytest.mark.parametrize("before", ["sleep", "stop"])
def test_an_actor_that_hangs_is_replaced_after_the_time_limit(
    open_pool: Open, said: list[str], tmp_path: Path, before: str
) -> None:
    pool = open_pool(workers=2, seconds=4)
    submit(pool, 4, before=before, flag=str(tmp_path / "flag"))
    assert results(pool) == [0, 1, 4, 9]
    assert pool.lost == {"hung": 1}
    assert "has not answered for more than 4 s, squaring 2 since " in said[0]


def test_the_work_of_a_removed_node_is_done_elsewhere(
    open_pool: Open, said: list[str], tmp_path: Path, cluster: Any, node: Any
) -> None:
    import ray

    third = ray.remote(Squares).options(num_cpus=1, resources={"third": 0.1})
    plain = ray.remote(Squares).options(num_cpus=1)
    places = iter([third])
    pool = Pool(lambda number: next(places, plain).remote(), 1, 60, said.append)
    submit(pool, 3, before="rest", flag=str(tmp_path / "flag"))
    while not (tmp_path / "flag").exists():
        pool.collect(0.1)
    cluster.remove_node(node, allow_graceful=False)
    assert results(pool)[-1] == 4
    assert pool.lost == {"node": 1}
    assert "was lost with its node, squaring 2 since" in said[0]
    pool.close()


def test_a_job_that_ends_every_actor_ends_the_run(open_pool: Open, tmp_path: Path) -> None:
    pool = open_pool()
    pool.submit(Job(0, "square", (0, "always"), "squaring 0"))
    with pytest.raises(Failed, match="3 workers in a row were lost squaring 0, the last one because it has died"):
        results(pool)


def test_a_mistake_of_the_user_is_not_tried_again(open_pool: Open, said: list[str]) -> None:
    pool = open_pool()
    pool.submit(Job(0, "square", (0, "mistake"), "squaring 0"))
    with pytest.raises(UserError, match=r"worker [01]: reward\.source: gives no number\."):
        results(pool)
    assert not said


def test_actors_that_find_no_place_end_the_run_with_a_sentence(open_pool: Open) -> None:
    pool = open_pool(workers=1, start_seconds=1.5, resources={"nowhere": 1})
    pool.submit(Job(0, "square", (0,), "squaring 0"))
    with pytest.raises(Failed, match=r"no worker has started within 1.5 s \(the cluster has 4 CPUs on 2 nodes"):
        results(pool)


def test_a_pool_without_work_does_not_keep_a_cpu_busy() -> None:
    pytest.importorskip("ray")
    pool, began = Pool(lambda number: Started, 2, 60, print), time.monotonic()
    assert pool.collect(timeout=20.0) == []
    assert time.monotonic() - began < 10


def test_a_job_for_one_actor_does_not_wait_for_ever_for_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("accord.distributed.ray.pool.nodes", lambda: [Node("a", "a", 2.0, 0.0)])
    pool = Pool([Started, Silent].__getitem__, 2, 60, print, start_seconds=0.0)
    pool._find_hung()  # whoever is there can do the work
    pool.submit(Job((0, 1), "square", (0,), "squaring 0", worker=1))
    time.sleep(0.01)
    with pytest.raises(Failed, match=r"worker 1 has not started within 0 s \(the cluster has 2 CPUs on 1 nodes"):
        pool._find_hung()
