"""Vectors in compiled kernels, their compilation, and loops over threads."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from accord.kernels import numba_vectors

REPO = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_exponential_is_exact_to_two_ulp() -> None:
    import numba

    @numba.njit
    def apply(x: np.ndarray, y: np.ndarray) -> None:
        for i in range(0, x.size, numba_vectors.LANES):
            numba_vectors.store(y, i, numba_vectors.exp2(numba_vectors.load(x, i)))

    x = np.concatenate([np.linspace(-126, 0, 2**16), -np.logspace(-12, 0, 2**14)]).astype(np.float32)
    y = np.empty_like(x)
    apply(x, y)
    exact = np.exp2(x.astype(np.float64))
    assert (np.abs(y - exact) / np.spacing(exact.astype(np.float32))).max() <= 2
    edge = np.zeros(numba_vectors.LANES, np.float32)
    edge[:4] = 0.0, math.nan, -1e9, -math.inf
    apply(edge, edge)
    assert edge[0] == 1.0
    assert math.isnan(edge[1])
    assert ((edge[2:4] >= 0) & (edge[2:4] < 1.2e-38)).all()


def test_threads_share_all_the_work() -> None:
    parts: list[tuple[int, int]] = []

    def note(first: int, last: int) -> None:
        parts.append((first, last))

    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        parts.clear()
        numba_vectors.parallel_for(note, count=7, work=2**30)
        assert sorted(i for first, last in parts for i in range(first, last)) == list(range(7))
        assert len(parts) == threads
    parts.clear()
    numba_vectors.parallel_for(note, count=7, work=100)  # too little to deal out
    assert parts == [(0, 7)]


def test_without_a_cache_folder_it_compiles_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    real = numba.njit

    def refuse(function: Callable[..., object], **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(function, **options)

    monkeypatch.setattr(numba, "njit", refuse)
    twice = numba_vectors.compiled(lambda x: 2 * x)
    assert twice(21) == 42


def test_compiling_is_said_once_and_loading_from_the_cache_is_silent(tmp_path: Path) -> None:
    (tmp_path / "own_kernels.py").write_text(
        "from accord.kernels.numba_vectors import compiled\n"
        "def more(x): return x + 1\n"
        "first = compiled(more)\n"
        "def twice(x): return x * 2\n"
        "second = compiled(twice)\n"
        "print(first(1), second(2), second(2.0))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{REPO}:{tmp_path}"}
    runs = [
        subprocess.check_output([sys.executable, "-c", "import own_kernels"], text=True, env=environment, timeout=120)
        for _ in range(2)
    ]
    assert runs == ["compiling kernels, once per machine (up to a minute)\n2 4 4.0\n", "2 4 4.0\n"]
