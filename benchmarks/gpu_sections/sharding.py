"""FSDP of one rank, and predicted memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from accord.config.common import Parallel
from accord.distributed import mesh
from accord.distributed.shards import spread
from accord.training.cross_entropy import cross_entropy
from accord.training.memory import Layout, predict, size_of
from gpu_sections.bench import Bench, Row, Work, apart, measure
from gpu_sections.sides import flops, labels_of, ours, sft_step, texts, updater_of


def fsdp(bench: Bench) -> list[Row]:
    """SFT by FSDP of one rank, gathered in bfloat16, beside the same model whole ("plain"): first losses, speed, memory."""
    s = bench.sizes
    rows = texts(bench, s.rows, s.length)
    work = Work(sum(map(len, rows)), flops(bench, [(0, len(r)) for r in rows], 6))
    losses: dict[str, float] = {}

    def train(name: str, **settings: Any) -> Callable[[], Any]:
        model = ours(bench)
        if settings:
            spread([model], Parallel(**settings))
        return sft_step(bench, model, rows, partial(losses.setdefault, name))

    row: Row = {"row": "fsdp_one_rank"}
    try:
        sharded = partial(train, "ours", strategy="fsdp", mixed_precision="bfloat16")
        measure(bench, row, "ours", work, sharded)
    finally:
        mesh.leave()
    measure(bench, row, "plain", work, partial(train, "plain"))
    return [row | {"apart": apart(losses["ours"], losses["plain"]), "at_most": 2e-2}]


def memory(bench: Bench) -> list[Row]:
    """The memory of a step of SFT beside what ``accord … --dry-run`` predicts; a GPU counts it, a CPU does not."""
    s = bench.sizes
    model, packed = ours(bench), labels_of(texts(bench, s.rows, s.length), bench.device)
    size = size_of(model, s.width)
    found: list[Row] = []
    for precision in ("float32", "bfloat16"):
        updater = updater_of(model, precision)
        bench.free()
        for _ in range(2):
            updater.step([packed], lambda b: cross_entropy(model, b))
        bench.synchronize()
        predicted = predict(size, Layout(bfloat16=precision == "bfloat16"), len(packed)).total / 2**30
        row: Row = {"row": f"memory_{precision}", "predicted_gib": predicted}
        if (gib := bench.peak_gib()) is not None:
            row |= {"ours_gib": gib, "apart": apart(predicted, gib), "at_most": 0.5}
        found.append(row)
    return found
