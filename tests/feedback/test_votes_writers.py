"""Many people vote at once in processes that are killed: no vote is lost, none is counted twice, no pair is asked twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from accord.feedback.connect import reading
from accord.feedback.entities import NewCandidate, NewPair, ProjectSettings
from accord.feedback.store import Store, open_store
from accord.feedback.vote_rows import read_votes

VOTER = Path(__file__).with_name("voter.py")


def vote_with_kills(
    place: str, folder: Path, people: int, votes: int, kills: int, overlap: int = 1
) -> dict[str, float]:
    """Has ``people`` vote ``votes`` times each in all, with SIGKILLs in between; returns figures, after checking them."""
    store = open_store(place)
    store.create_project("busy", ProjectSettings(overlap=overlap, repeat_share=0, gold_share=0))
    pairs = people * votes // overlap
    reply = {side: [NewCandidate(f"{side} {i}", None, "m", {}) for i in range(pairs)] for side in "ab"}
    prompt = ({"role": "user", "content": "q"},)
    store.add_pairs("busy", [NewPair(prompt, a, b, 1.0) for a, b in zip(reply["a"], reply["b"], strict=True)])
    names = [f"person {i}" for i in range(people)]
    for name in names:
        store.add_annotator("busy", name)
    words = {n: [sys.executable, str(VOTER), place, "busy", n, str(folder / f"{n}.jsonl")] for n in names}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    begun = time.monotonic()

    def start(name: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.err").open("ab") as errors:
            return subprocess.Popen(words[name], env=environment, stderr=errors)

    running = {name: start(name) for name in names}
    rng, killed = random.Random(0), 0
    while alive := [n for n in names if running[n].poll() is None]:
        wanted = sum(1 for n in names for _ in _notes(folder, n, "saved"))
        if killed < kills and wanted >= (killed + 1) * people * votes // (kills + 1):
            victim = rng.choice(alive)
            running[victim].kill()
            running[victim].wait()
            killed += 1
            running[victim] = start(victim)
        time.sleep(0.01)
    took = time.monotonic() - begun
    errors = "".join((folder / f"{n}.err").read_text() for n in names)
    assert all(p.returncode == 0 for p in running.values()), errors
    _check(store, folder, names, pairs, overlap)
    return {"votes": pairs * overlap, "seconds": took, "kills": killed, "waits": errors.count("\n")}


def _notes(folder: Path, name: str, key: str) -> list[dict[str, object]]:
    path = folder / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [note for line in lines if line.endswith("}") and key in (note := json.loads(line))]


def _check(store: Store, folder: Path, names: list[str], pairs: int, overlap: int) -> None:
    with reading(store.engine) as c:
        stored = c.exec_driver_sql("SELECT id, request FROM votes").all()
    acknowledged = {n["saved"]: n["vote"] for name in names for n in _notes(folder, name, "saved")}
    assert {request: vote for vote, request in stored} == acknowledged  # none lost, none that nobody sent
    assert len(stored) == len(acknowledged) == pairs * overlap
    rows = read_votes(store, "busy")
    assert Counter(Counter(row.pair for row in rows).values()) == {overlap: pairs}
    assert max(Counter((row.pair, row.annotator) for row in rows).values()) == 1


def test_no_vote_is_lost_or_doubled_when_voters_are_killed(place: str, tmp_path: Path) -> None:
    figures = vote_with_kills(place, tmp_path, people=3, votes=6, kills=2, overlap=2)
    assert figures["kills"] == 2
