"""Cross-entropy on the labels of packed texts: the training that base and SFT share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from accord.config.common import Optimizer
from accord.data.batches import Batches
from accord.data.packing import pack_supervised
from accord.data.supervised import SupervisedExample
from accord.functional.logprobs import token_logprobs
from accord.functional.losses import nll_loss, sft_loss
from accord.kernels.vocabulary_head import label_nll
from accord.models.backbone import Backbone
from accord.models.chosen import head_weight, hidden_at
from accord.models.open import module
from accord.runtime.run import Run
from accord.training.checkpoint import Checkpoint, Resumable
from accord.training.fit import fit
from accord.training.last_metrics import Latest
from accord.training.updater import Updater
from accord.types import LossOutput, Packed


def labels(packed: Packed) -> torch.Tensor:
    """(N,) the tokens that are labels and have a predecessor in their text to be predicted from."""
    return (packed.loss_mask & (packed.previous >= 0)).nonzero().squeeze(-1)


def cross_entropy(backbone: Backbone, packed: Packed) -> LossOutput:
    """−Σ log p(label) over the count of labels."""
    chosen = labels(packed)
    hidden, targets = hidden_at(backbone, packed, packed.previous[chosen]), packed.tokens[chosen]
    weight = head_weight(backbone)
    if weight is None:
        return sft_loss(token_logprobs(backbone.logits, hidden, targets)[0])
    return nll_loss(label_nll(hidden, weight, targets), len(targets))


def micro_batches(rows: Sequence[int], micro_batch_size: int) -> Iterator[list[int]]:
    """The rows of one step, cut into passes."""
    size = micro_batch_size or len(rows)
    for i in range(0, len(rows), size):
        yield list(rows[i : i + size])


def train_texts(
    run: Run,
    backbone: Backbone,
    examples: Sequence[SupervisedExample],
    settings: Optimizer,
    precision: str,
    after_epoch: Callable[[int, dict[str, float]], None],
) -> dict[str, float]:
    """Trains to the end of the last epoch, from the saved state where the run resumes; returns the last metrics."""
    device = next(module(backbone).parameters()).device
    batches = Batches([len(e.tokens) for e in examples], settings.batch_size, run.seed, settings.num_epochs)
    updater = Updater([(module(backbone).parameters(), settings.learning_rate)], settings, len(batches), precision)
    last = Latest()
    parts: dict[str, Resumable] = {"model": module(backbone), "updater": updater, "data": batches, "metrics": last}
    checkpoint = Checkpoint(run.directory / "state.pt", run.key, parts)
    run.begin(len(batches), checkpoint.restore() if run.resume else 0)
    steps_per_epoch = len(batches) // settings.num_epochs

    def packed(rows: Sequence[int]) -> list[Packed]:
        cut = micro_batches(rows, settings.micro_batch_size)
        return [pack_supervised([examples[r] for r in some]).to(device) for some in cut]

    def after_step(metrics: dict[str, float]) -> None:
        last.update(metrics)
        if (run.step + 1) % steps_per_epoch == 0:
            after_epoch(run.step // steps_per_epoch, metrics)

    fit(
        run,
        updater,
        map(packed, batches),
        lambda batch: cross_entropy(backbone, batch),
        save=lambda: checkpoint.save(run.step),
        after_step=after_step,
    )
    return last
