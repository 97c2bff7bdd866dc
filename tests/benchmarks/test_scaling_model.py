"""The simulation of asynchronous rollouts against closed forms, and the cost of a rollout on GPUs."""

from __future__ import annotations

from math import inf

import pytest

from benchmarks.scaling_model import MODELS, Gpu, Layout, Parts, best, fit, parts_on, simulate


def test_one_worker_in_lockstep_takes_the_sum_of_all_parts() -> None:
    found = simulate(Parts(chunk=2.0, update=3.0, publish=0.5, overhead=0.25), Layout(1, 0, 4))
    assert found.seconds == pytest.approx(4 * 2.0 + 3.0 + 0.5 + 4 * 0.25)
    assert found.learner_idle == pytest.approx(8.0 / 12.5)
    assert found.worker_idle == pytest.approx(1 - 8.0 / 12.5)
    assert set(found.ages) == {0}


@pytest.mark.parametrize(("workers", "waves"), [(1, 4), (2, 2), (3, 2), (4, 1), (8, 1)])
def test_workers_in_lockstep_take_whole_waves_of_chunks(workers: int, waves: int) -> None:
    assert simulate(Parts(2.0, 3.0), Layout(workers, 0, 4)).seconds == pytest.approx(waves * 2.0 + 3.0)


@pytest.mark.parametrize(("chunk", "update"), [(3.0, 3.0), (1.0, 5.0), (4.0, 3.0)])
def test_one_rollout_ahead_takes_the_longer_of_sampling_and_training(chunk: float, update: float) -> None:
    found = simulate(Parts(chunk, update), Layout(1, 1, 1))
    assert found.seconds == pytest.approx(max(chunk, update))
    assert found.learner_idle == pytest.approx(1 - update / max(chunk, update))
    assert found.worker_idle == pytest.approx(1 - chunk / max(chunk, update))
    assert max(found.ages) == 1


def test_a_balanced_pipeline_leaves_nobody_idle() -> None:
    found = simulate(Parts(chunk=2.0, update=4.0), Layout(2, 2, 4))
    assert found.seconds == pytest.approx(4.0)
    assert found.learner_idle == pytest.approx(0, abs=1e-9)
    assert found.worker_idle == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("age", [0, 1, 4])
@pytest.mark.parametrize("variation", [0.0, 0.8])
def test_neither_ages_nor_the_queue_exceed_the_bound(age: int, variation: float) -> None:
    slow_learner = simulate(Parts(1.0, 9.0, variation=variation), Layout(3, age, 4))
    slow_workers = simulate(Parts(9.0, 1.0, variation=variation), Layout(3, age, 4))
    for found in (slow_learner, slow_workers):
        assert min(found.ages) >= 0
        assert max(found.ages) <= age
        assert found.most_open <= (age + 1) * 4
    assert slow_learner.most_open >= max(age, 1) * 4  # besides those that the learner has taken


def test_tasks_share_the_cores() -> None:
    parts = Parts(chunk=2.0, update=3.0)
    assert simulate(parts, Layout(2, 0, 2, cores=1)).seconds == pytest.approx(2 * 2.0 + 3.0)
    assert simulate(parts, Layout(2, 4, 2, cores=1)).seconds == pytest.approx(2 * 2.0 + 3.0)  # nothing is gained
    assert simulate(parts, Layout(2, 4, 2, cores=inf)).seconds == pytest.approx(3.0)


def test_uneven_chunks_cost_most_in_lockstep() -> None:
    parts = Parts(chunk=2.0, update=1.0, variation=0.6)
    lockstep, ahead = (simulate(parts, Layout(4, age, 4), rollouts=400).seconds for age in (0, 2))
    assert lockstep > 2.0 + 1.0 + 0.5
    assert ahead < lockstep - 1.0


def test_parts_are_read_from_a_lockstep_run() -> None:
    row = {
        "ray/worker_seconds": 4.0, "ray/wait_seconds": 4.5, "ray/update_seconds": 3.0,
        "ray/publish_seconds": 0.1,
    }  # fmt: skip
    parts = fit([row, row], chunks=2)
    assert (parts.chunk, parts.update, parts.publish, parts.overhead) == (2.0, 3.0, 0.1, 0.25)
    assert simulate(parts, Layout(1, 0, 2)).seconds == pytest.approx(4.5 + 3.0 + 0.1)


def test_the_cost_on_gpus_has_the_closed_forms_of_its_inputs() -> None:
    work, gpu = MODELS["7B"], Gpu()
    one, two = (parts_on(gpu, work, 32, learners) for learners in (16, 32))
    assert one["training"] == pytest.approx(2 * two["training"])
    assert one["training"] == pytest.approx(16 * 7.2e9 * 1024 * 1280 / 16 / (989e12 * 0.4))
    assert one["publishing"] == pytest.approx(14.4e9 / 50e9)
    assert parts_on(gpu, work, 1024, 1)["all-reduce"] == 0
    # one reply a GPU: each token reads all weights once, and its context
    assert parts_on(gpu, work, 1024, 1)["sampling"] == pytest.approx(
        1024 * (14.4e9 + 768 * work.cache) / (3.35e12 * 0.5)
    )


def test_being_ahead_never_costs_time_and_more_gpus_are_faster() -> None:
    gpu, work = Gpu(), MODELS["1B"]
    ages = [best(gpu, work, 8, age, 0.0).seconds for age in (0, 1, 2)]
    assert ages[0] > ages[1] >= ages[2] - 1e-9
    assert best(gpu, work, 64, 1, 0.0).seconds < ages[1]
