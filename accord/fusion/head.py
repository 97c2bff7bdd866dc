"""Reward heads: merged so that calibrated scores are averaged.

A reward model's score is (head(features) − μ)/s.  Scale and offset of its raw scores are arbitrary (Bradley-Terry
determines neither), and a ``ScalarHead`` also centers and scales each feature by its own statistics.  So before merging,
every head is rewritten as an equal one without statistics: ``fold_statistics`` folds the features' mean c and standard
deviation d, μ and s into the last layer.  For equal features the linear average of such heads gives exactly the average of
the calibrated scores, whatever the scales of the raw scores.  Afterwards ``restore_statistics`` writes the result with c, d,
μ and s of the first model.

Departure from WARM, which averages the raw last layer: the same where all statistics are equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accord.io.atomic import write_text
from accord.io.records import Head, read_record
from accord.models.hf_format import read_tensors, write_tensors
from accord.models.reward import HEAD_CONFIG, HEAD_FILE

State = Mapping[str, Tensor]
STATISTICS = ("head.centre", "head.spread", "mean", "deviation")


def read_head(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of ``reward_head.json``, and the head's tensors.  Raises UserError where they are missing."""
    remedy = "copy the whole folder again."
    return read_record(folder / HEAD_CONFIG, Head, remedy), read_tensors(folder / HEAD_FILE)


def write_head(folder: Path, shape: Mapping[str, Any], state: State) -> None:
    """Writes the two files of a head."""
    write_tensors(folder / HEAD_FILE, {name: tensor.float().contiguous() for name, tensor in state.items()})
    write_text(folder / HEAD_CONFIG, json.dumps(dict(shape)))


def fold_statistics(state: State) -> dict[str, Tensor]:
    """Weights and biases (float64) of the head without statistics that gives the same calibrated scores.

    w·(f − c)/d + b, less μ, over s  =  (w/(d s))·f + (b − Σ w c/d − μ)/s.
    """
    values = {name: tensor.double() for name, tensor in state.items()}
    weight, bias = _last(values)
    if "head.centre" in values:
        values[weight] = values[weight] / values["head.spread"]
        values[bias] = values[bias] - values[weight] @ values["head.centre"]
    values[weight] = values[weight] / values["deviation"]
    values[bias] = (values[bias] - values["mean"]) / values["deviation"]
    return {name: tensor for name, tensor in values.items() if name not in STATISTICS}


def restore_statistics(merged: State, first: State) -> dict[str, Tensor]:
    """A head without statistics, written with the statistics of ``first``: the inverse of ``fold_statistics``."""
    values = {**{name: tensor.double() for name, tensor in first.items()}, **merged}
    weight, bias = _last(values)
    values[weight] = values[weight] * values["deviation"]
    values[bias] = values[bias] * values["deviation"] + values["mean"]
    if "head.centre" in values:
        values[bias] = values[bias] + values[weight] @ values["head.centre"]
        values[weight] = values[weight] * values["head.spread"]
    return values


def zero_head(like: State) -> dict[str, Tensor]:
    """A head without statistics that scores everything 0: stands for the head of a base that has none."""
    return {name: torch.zeros_like(tensor) for name, tensor in like.items()}


def _last(state: State) -> tuple[str, str]:
    """The names of the last layer's weight and bias."""
    if "head.linear.weight" in state:
        return "head.linear.weight", "head.linear.bias"
    layers = [int(name.split(".")[2]) for name in state if name.startswith("head.layers.")]
    return f"head.layers.{max(layers)}.weight", f"head.layers.{max(layers)}.bias"
