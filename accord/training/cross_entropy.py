"""Cross-entropy on the labels of packed texts: the training shared by base and SFT."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from accord.config.sft import TextStage
from accord.data.heldout import Split
from accord.data.packing import pack_supervised
from accord.data.supervised import SupervisedExample
from accord.distributed import mesh
from accord.functional.logprobs import token_logprobs
from accord.functional.losses.supervised import nll_loss, sft_loss
from accord.kernels.vocabulary_head import label_nll
from accord.models.backbone import Backbone
from accord.runtime.device import autocast
from accord.runtime.run import Run
from accord.training.epochs import Epochs, train_epochs
from accord.training.last_metrics import LastMetrics
from accord.types import LossOutput, Packed


def labels(packed: Packed) -> torch.Tensor:
    """(N,) indices of the labels that have a predecessor in their text to be predicted from."""
    return (packed.loss_mask & (packed.previous >= 0)).nonzero().squeeze(-1)


def cross_entropy(backbone: Backbone, packed: Packed) -> LossOutput:
    """−Σ log p(label) over the count of labels."""
    at = labels(packed)
    hidden, targets = backbone(packed, packed.previous[at]), packed.tokens[at]
    weight = backbone.head_weight()
    if weight is None:
        return sft_loss(token_logprobs(backbone.logits, hidden, targets)[0])
    return nll_loss(label_nll(hidden, weight, targets), len(targets))


@torch.no_grad()
def mean_cross_entropy(
    backbone: Backbone, examples: Sequence[SupervisedExample], precision: str, size: int
) -> tuple[float, int]:
    """(−Σ log p(label) over the number of labels, that number), over all ``examples``; ``size`` of them in a pass.

    Passes are added as sums in float64, so that which rows share a pass changes the mean only by rounding.
    """
    device = next(backbone.parameters()).device
    total, count = 0.0, 0
    for number, counted in mesh.passes_of_this_rank(-(-len(examples) // size)):
        packed = pack_supervised(examples[number * size : (number + 1) * size]).to(device)
        with autocast(device, precision):
            loss = cross_entropy(backbone, packed).loss
        total, count = total + counted * float(loss.total), count + counted * int(loss.count)
    sums = mesh.add(torch.tensor([total, count], dtype=torch.float64)).tolist()
    return sums[0] / sums[1], int(sums[1])


def train_texts(
    run: Run,
    backbone: Backbone,
    data: Split[SupervisedExample],
    config: TextStage,
    after_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
) -> LastMetrics:
    """Trains to the end of the last epoch, from the saved state where the run resumes; returns the last metrics.

    Where rows are held out, ``heldout/loss`` is their mean cross-entropy.  ``after_epoch`` gets the number of the epoch,
    counted from 0, and the metrics of its last step.
    """
    device = next(backbone.parameters()).device
    examples, settings = data.train, config.training

    def heldout_loss() -> dict[str, float]:
        size = settings.micro_batch_size or settings.batch_size
        loss, labels = mean_cross_entropy(backbone, data.heldout, config.precision, size)
        if not math.isfinite(loss):
            run.say(f"note: the held-out loss at step {run.step} is {loss}, not a finite number, and is left out")
            return {}
        if run.step == run.total_steps:
            perplexity = math.exp(min(loss, 700.0))  # e^709 is the largest number
            run.say(f"held-out loss {loss:.4f} nats per token (perplexity {perplexity:.4g}), {labels:,} labels")
        return {"heldout/loss": loss}

    epochs = Epochs(
        [len(e.tokens) for e in examples],
        lambda rows: pack_supervised([examples[r] for r in rows]).to(device),
        lambda packed: cross_entropy(backbone, packed),
        settings,
        config.precision,
        heldout_loss if data.heldout else None,
        config.eval_every,
    )
    steps_per_epoch = -(-len(examples) // settings.batch_size)

    def after_step(metrics: dict[str, float]) -> None:
        if (run.step + 1) % steps_per_epoch == 0:
            after_epoch(run.step // steps_per_epoch, metrics)

    groups = [(list(backbone.parameters()), settings.peak_rate)]
    return train_epochs(run, backbone, groups, epochs, after_step=after_step)
