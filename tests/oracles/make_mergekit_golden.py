"""Writes tests/golden/mergekit.safetensors: small tensors and what mergekit 0.1.5 makes of them.

  python -m venv mk && mk/bin/pip install mergekit==0.1.5 && mk/bin/python tests/oracles/make_mergekit_golden.py

``cases`` and ``inputs`` are also what the tests read the golden file by; they need torch only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "mergekit.safetensors"
SHAPES = {
    "matrix": (6, 5),
    "bias": (7,),
    "scalar": (),
    "cube": (2, 3, 2),
    "parallel": (9,),
    "opposite": (9,),
    "zero": (4,),
}
WEIGHTS = [0.7, 0.2, 0.4]
DENSITIES = [0.3, 0.6, 0.9]


def inputs() -> dict[str, list[Tensor]]:
    """By name: a base and three models; some parallel, opposite or zero, where SLERP and TIES take other branches."""
    generator = torch.Generator().manual_seed(20240116)
    made = {}
    for name, shape in SHAPES.items():
        base = torch.randn(shape, generator=generator)
        models = [base + 0.5 * torch.randn(shape, generator=generator) for _ in range(3)]
        if name in ("parallel", "opposite"):
            models[0] = base * (1.5 if name == "parallel" else -1.5)
            models[1] = base.clone()  # a task vector of zeros
        if name == "zero":
            base = torch.zeros(shape)
        made[name] = [base, *models]
    made["matrix"][3][:2] = made["matrix"][0][:2]  # entries without a sign
    return made


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Key, method and its parameters."""
    for normalize in (True, False):
        yield f"linear {normalize}", "linear", {"normalize": normalize}
        for scaling in (1.0, 0.5):
            given = {"normalize": normalize, "lambda": scaling}
            yield f"task_arithmetic {normalize} {scaling}", "task_arithmetic", given
            yield f"ties {normalize} {scaling}", "ties", given
    for t in (0.0, 0.3, 0.5, 1.0):
        yield f"slerp {t}", "slerp", {"t": t}


def by_mergekit(method: str, given: dict[str, Any], tensors: list[Tensor]) -> Tensor:
    """What mergekit gives; ``tensors`` are the base and three models, of which linear takes no base and SLERP one model."""
    from mergekit import merge_methods
    from mergekit.merge_methods.base import TensorGroup

    parameters = dict(given)
    if method != "slerp":
        parameters["weight"] = WEIGHTS
    if method in ("ties", "task_arithmetic"):
        parameters["density"] = DENSITIES
    some = {"linear": tensors[1:], "slerp": tensors[:2]}.get(method, tensors)
    group = TensorGroup.from_tensors(some, base_index=None if method == "linear" else 0, name="x.weight")
    merged: Tensor = merge_methods.get(method)([group], parameters=parameters)[0]
    return merged


def main() -> None:
    from safetensors.torch import save_file

    made = {}
    for name, tensors in inputs().items():
        for place, tensor in enumerate(tensors):
            made[f"input/{name}/{place}"] = tensor
        for key, method, given in cases():
            made[f"{key}/{name}"] = by_mergekit(method, given, tensors)
    about = {"made_by": "mergekit", "version": version("mergekit"), "torch": torch.__version__}
    GOLDEN.parent.mkdir(exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in made.items()}, GOLDEN, metadata=about)
    print(f"{GOLDEN}: {len(made)} tensors, {GOLDEN.stat().st_size} bytes, {json.dumps(about)}")


if __name__ == "__main__":
    main()
