"""Who is late: a rank that does not run, else one that has come to fewer places than the others."""

from __future__ import annotations

import subprocess
import sys

from accord.distributed.watchdog import LATE, Where, late


def test_the_rank_with_the_fewest_places_is_named() -> None:
    words = late([Where(9, "step 5, backward pass 1"), Where(8, "step 5, forward pass 1")], 30)
    assert words.startswith("rank 1 has been at step 5, forward pass 1 for more than 30 s")


def test_a_rank_that_does_not_run_is_named_whatever_its_place() -> None:
    words = late([Where(9, "step 5"), Where(9, "step 5", frozen=True), Where(7, "step 4")], 0.5)
    assert words.startswith("rank 1 has been at step 5 for more than 0.5 s")


def test_ranks_at_one_place_are_named_together() -> None:
    assert late([Where(3, "step 1"), Where(3, "step 1")], 60).startswith("all ranks have been at step 1")
    assert late([Where(3, "step 1"), Where(2, "its start"), Where(2, "its start")], 60).startswith("ranks 1, 2 have")


def test_a_rank_that_waits_too_long_ends_and_names_the_one_that_does_not_run() -> None:
    """Rank 0 stays at one place; rank 1 has written its place once and never again."""
    code = """
import json, time
import torch.distributed as dist
from accord.distributed.watchdog import Watchdog
store = dist.HashStore()
store.set("place/1", json.dumps([4, "step 2, forward pass 1", 9]))
watchdog = Watchdog(store, 0, 2, 0.5)
watchdog.start()
watchdog.at("step 2, backward pass 1")
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == LATE, done.stderr
    assert done.stderr.startswith("accord: rank 1 has been at step 2, forward pass 1 for more than 0.5 s"), done.stderr
