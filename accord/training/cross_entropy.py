"""Cross-entropy on the labels of packed texts: the training shared by base and SFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from accord.config.common import Optimizer
from accord.data.packing import pack_supervised
from accord.data.supervised import SupervisedExample
from accord.functional.logprobs import token_logprobs
from accord.functional.losses.supervised import nll_loss, sft_loss
from accord.kernels.vocabulary_head import label_nll
from accord.models.backbone import Backbone
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


def train_texts(
    run: Run,
    backbone: Backbone,
    examples: Sequence[SupervisedExample],
    settings: Optimizer,
    precision: str,
    after_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
) -> LastMetrics:
    """Trains to the end of the last epoch, from the saved state where the run resumes; returns the last metrics.

    ``after_epoch`` gets the number of the epoch, counted from 0, and the metrics of its last step.
    """
    device = next(backbone.parameters()).device
    data = Epochs(
        [len(e.tokens) for e in examples],
        lambda rows: pack_supervised([examples[r] for r in rows]).to(device),
        lambda packed: cross_entropy(backbone, packed),
        settings,
        precision,
    )
    steps_per_epoch = -(-len(examples) // settings.batch_size)

    def after_step(metrics: dict[str, float]) -> None:
        if (run.step + 1) % steps_per_epoch == 0:
            after_epoch(run.step // steps_per_epoch, metrics)

    groups = [(list(backbone.parameters()), settings.learning_rate)]
    return train_epochs(run, backbone, groups, data, after_step=after_step)
