"""Seeds: one for each purpose and moment, the same in every process."""

from __future__ import annotations

import torch

from accord.runtime.seeds import derive, generator


def test_seeds_depend_on_seed_purpose_and_every_counter() -> None:
    assert derive(0, "a", 1, 2) == derive(0, "a", 1, 2)
    seeds = [derive(0, "a"), derive(0, "b"), derive(1, "a")]
    seeds += [derive(0, "a", 1), derive(0, "a", 1, 2), derive(0, "a", 12), derive(0, "a", 2, 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**56 for seed in seeds)


def test_seeds_are_the_same_in_every_process_and_release() -> None:
    """blake2b of "0:sampling:3:1", computed once: Python's own hash changes with the process."""
    assert derive(0, "sampling", 3, 1) == 32304133102732074


def test_a_generator_is_no_more_than_its_seed() -> None:
    drawn = [torch.rand(3, generator=generator(0, "x", i)) for i in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
