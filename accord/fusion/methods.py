"""How tensors of one name are merged: pure functions in the tensors' own dtype (the caller gives float32).

``θ_i`` is the tensor of model i, ``θ_0`` that of the base, ``δ_i = θ_i − θ_0`` a task vector, ``w_i`` a weight, ``λ`` the
scaling.  All tensors of a call have one shape, and none is modified.  The models are iterated once, in order, so that they may
be read lazily: sums hold one of them at a time, TIES and DARE-TIES one task vector per model.

Numbered details:
1. linear, SLERP and TIES agree with mergekit 0.1.5 (oracle test): the angle of SLERP is between whole tensors, and task
   vectors are weighted before TIES elects signs;
2. DARE divides the remaining entries by the density, as in the paper.  Departure from mergekit, which divides by the
   remaining share of the absolute sum: that depends on the draw, and is equal only on average;
3. zero entries of a task vector have no sign: they neither vote nor count in ``normalize``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PARALLEL = 0.9995
"""SLERP interpolates linearly where the absolute cosine is larger than this (parallel or opposite)."""
SMALL_NORM = 1e-8
"""Tensors shorter than this have no direction."""
SMALL_SUM = 1e-8
"""Sums of weights below this are not divided by."""
CHUNK = 1 << 17
"""Entries processed at once where several temporary tensors are needed."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How task vectors are summed: λ Σ w_i δ_i, divided by Σ w_i where ``normalize``."""

    weights: Sequence[float]
    normalize: bool
    scaling: float


@dataclass(frozen=True, slots=True)
class Thinning:
    """DARE's random choice of entries: for each model the density and the generator."""

    densities: Sequence[float]
    generators: Sequence[torch.Generator]

    def deltas(self, base: Tensor, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        """The task vectors, thinned by ``drop``, one at a time."""
        for tensor, density, generator in zip(tensors, self.densities, self.generators, strict=True):
            yield drop(tensor - base, density, generator)


def linear(tensors: Iterable[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """Σ w_i θ_i, divided by Σ w_i where ``normalize``.

    Model soups (Wortsman et al. 2022, arXiv 2203.05482, section 2, with weights); of reward models it is WARM (Ramé et al.
    2024, arXiv 2401.12187, section 3).  Raises ValueError where the weights to divide by sum to zero.
    """
    total = sum(weights)
    if normalize and abs(total) < SMALL_SUM:
        raise ValueError(f"weights {list(weights)} sum to zero, so they cannot be normalized")
    result = _sum(tensors, weights)
    return result.div_(total) if normalize else result


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """sin((1−t)Ω)/sin Ω · θ_1 + sin(tΩ)/sin Ω · θ_2, with Ω the angle between the two as vectors.

    Shoemake 1985, *Animating rotation with quaternion curves*, for tensors of any length: the angle is that of the
    directions, the tensors keep their own lengths.  Where they are parallel or opposite (|cos Ω| > 0.9995) it is the straight
    line, as in mergekit; a zero tensor counts as perpendicular, again as there.
    Departure from WARP (Ramé et al. 2024, arXiv 2406.16768, stage 2): the angle is that of the tensors, as in mergekit, not
    that of their task vectors.
    """
    norms = [float(torch.linalg.vector_norm(x)) for x in (first, second)]
    lengths = [norm if norm > SMALL_NORM else 1.0 for norm in norms]
    cosine = ((first / lengths[0]) * (second / lengths[1])).sum().clamp(-1, 1)
    if float(cosine.abs()) > PARALLEL:
        return (1 - t) * first + t * second
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)


def interpolate(base: Tensor, tensor: Tensor, eta: float) -> Tensor:
    """θ_0 + η (θ − θ_0): on the line from the base (η = 0) through the model (η = 1), and beyond.

    WARP's linear interpolation towards initialization, LITI (Ramé et al. 2024, arXiv 2406.16768, stage 3); η between 0 and
    1 is WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), η above 1 ExPO (Zheng et al. 2024, arXiv 2404.16792).
    """
    return base + eta * (tensor - base)


def task_arithmetic(base: Tensor, tensors: Iterable[Tensor], mixture: Mixture) -> Tensor:
    """θ_0 + λ Σ w_i δ_i, the sum divided by Σ w_i where ``normalize`` (Ilharco et al. 2022, arXiv 2212.04089, section 2)."""
    return _add(base, (x - base for x in tensors), mixture)


def ties(base: Tensor, tensors: Iterable[Tensor], mixture: Mixture, densities: Sequence[float]) -> Tensor:
    """Trim, elect, merge (Yadav et al. 2023, arXiv 2306.01708, algorithm 1).

    The fraction ``density`` of largest entries of each δ_i is kept; for each entry the sign of Σ w_i δ_i is elected; values
    with that sign are summed, and divided by the sum of their weights where ``normalize`` (the paper's disjoint mean).
    Departure, as in mergekit: models have weights, which count in the election.
    """
    return _elect(base, [trim(x - base, density) for x, density in zip(tensors, densities, strict=True)], mixture)


def dare_linear(base: Tensor, tensors: Iterable[Tensor], mixture: Mixture, thinning: Thinning) -> Tensor:
    """Task arithmetic on task vectors thinned by ``drop`` (Yu et al. 2023, arXiv 2311.03099, section 3)."""
    return _add(base, thinning.deltas(base, tensors), mixture)


def dare_ties(base: Tensor, tensors: Iterable[Tensor], mixture: Mixture, thinning: Thinning) -> Tensor:
    """TIES with ``drop`` in place of ``trim`` (Yu et al. 2023)."""
    return _elect(base, list(thinning.deltas(base, tensors)), mixture)


def trim(delta: Tensor, density: float) -> Tensor:
    """The fraction ``density`` of the entries of largest magnitude, at least one; zero elsewhere.

    Of equal magnitudes at the threshold the earlier entries are kept, so that the number is exact.
    """
    if density >= 1 or not delta.numel():
        return delta
    keep = max(1, int(density * delta.numel()))
    flat = delta.reshape(-1)
    partitioned = flat.abs().numpy()
    partitioned.partition(len(flat) - keep)  # selects without sorting, in a tenth of the time
    threshold = float(partitioned[len(flat) - keep])
    del partitioned
    magnitudes = flat.abs()
    mask = magnitudes.less(threshold).logical_not_()  # keeps NaN, so that the result shows it
    surplus = int(mask.sum()) - keep
    if threshold > 0 and surplus:
        mask[(magnitudes == threshold).nonzero()[-surplus:]] = False
    return torch.where(mask, flat, 0).reshape(delta.shape)


def drop(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each entry is kept with probability ``density`` and divided by it: equal to ``delta`` in expectation."""
    if density >= 1:
        return delta
    result = torch.empty_like(delta, memory_format=torch.contiguous_format)
    flat, source = result.view(-1), delta.reshape(-1)
    for part in _parts(len(flat)):
        mask = torch.rand(source[part].shape, generator=generator) < density
        flat[part] = torch.where(mask, source[part] / density, 0)
    return result


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, size, CHUNK))


def _sum(tensors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    result: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        result = tensor * weight if result is None else result.add_(tensor, alpha=weight)
    assert result is not None
    return result


def _add(base: Tensor, deltas: Iterable[Tensor], mixture: Mixture) -> Tensor:
    mixed, total = _sum(deltas, mixture.weights), sum(mixture.weights)
    if mixture.normalize and abs(total) >= SMALL_SUM:
        mixed.div_(total)
    return mixed.mul_(mixture.scaling).add_(base)


def _elect(base: Tensor, deltas: Sequence[Tensor], mixture: Mixture) -> Tensor:
    """The sum over entries of the elected sign, which is ``+`` where the votes cancel."""
    result = base.clone(memory_format=torch.contiguous_format)
    flat, flats = result.view(-1), [delta.reshape(-1) for delta in deltas]
    for part in _parts(len(flat)):
        weighted = torch.stack([delta[part] * weight for delta, weight in zip(flats, mixture.weights, strict=True)])
        elected = torch.where(weighted.sum(0) >= 0, 1, -1)
        agrees = weighted.sign() == elected
        mixed = torch.where(agrees, weighted, 0).sum(0)
        if mixture.normalize:
            shares = torch.tensor(mixture.weights, dtype=base.dtype)[:, None]
            counted = (agrees * shares).sum(0)
            mixed.div_(torch.where(counted == 0, 1, counted))
        flat[part] += mixture.scaling * mixed
    return result
