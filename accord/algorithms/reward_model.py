"""Reward model: Bradley-Terry on pairs (Stiennon et al. 2020, arXiv 2009.01325, section 3.4), or MSE on features.

Numbered details:
1. loss −log σ(r_chosen − r_rejected − margin), a sum over the count of pairs; soft labels and weights where rows have
   them, and ties as an outcome of their own where ``model.ties`` asks (Rao and Kupper 1967; Davidson 1970);
2. a scalar head, N(0, 1/√(d+1)), on features pooled over the reply (mean, or its last token), layer-normalized, then
   each feature centered and scaled by its statistics over training replies before the first step;
3. one epoch by default: a second one overfits;
4. held-out accuracy, without ties, by the function that ``compare`` uses; prompts on both sides are counted;
5. mean and deviation of the scores are measured *after* training on the training replies and stored with the model.
Departure: ``features`` regresses +1 for chosen and −1 for rejected replies by MSE with an MLP on a frozen model's
features, as in ``configs/reward_model.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from accord.config.reward import LanguageRewardConfig, LanguageRewardModel, RewardConfig
from accord.data.packing import pack_preferences, soft_labels
from accord.data.preferences import PreferencePair, decided, longest_text, read_pairs, unit_length, units
from accord.data.tokenizer import Tokenizer
from accord.distributed import mesh
from accord.distributed.shards import spread
from accord.errors import UserError
from accord.evaluation.reward_models import heldout_accuracy, reply_features, score_pairs
from accord.functional.losses.preference import bradley_terry_loss
from accord.functional.losses.supervised import mse_loss
from accord.functional.losses.ties import TieModel, log_tie_of, log_tie_of_share, tie_loss, tie_parameter
from accord.models.open import keep_layers
from accord.models.reward import RewardMLP, RewardModel, ScalarHead, open_trunk
from accord.runtime.run import Run
from accord.training.artifact import open_tokenizer, require_fit, save_artifact, save_pt
from accord.training.describe import (
    describe_memory,
    describe_model,
    describe_steps,
    memory_by_strategy,
    tokens_in_a_pass,
)
from accord.training.epochs import Epochs, train_epochs
from accord.types import LossOutput, PreferenceBatch, SoftLabels

MAX_MEASURED_PAIRS = 256
"""Pairs whose replies the features' mean and standard deviation are measured on, where the head is not fitted first."""


class Ties(nn.Module):
    """The parameter of a model of ties, () on a logarithmic scale: learned, or given."""

    def __init__(self, kind: TieModel, log_tie: float, learned: bool) -> None:
        super().__init__()
        self.kind = kind
        self.log_tie = nn.Parameter(torch.tensor(log_tie), requires_grad=learned)

    def value(self) -> float:
        """θ of Rao and Kupper, or ν of Davidson."""
        return tie_parameter(self.kind, float(self.log_tie.detach()))


def objective(model: RewardModel, batch: PreferenceBatch, kind: str, ties: Ties | None = None) -> LossOutput:
    """The loss of one micro-batch of pairs."""
    both = torch.cat([batch.chosen, batch.rejected])
    if model.pooling == "last":
        scores = model.head(model.backbone(batch.packed, batch.packed.last[both]))
    else:
        scores = model.raw(batch.packed, both)
    chosen, rejected = scores.chunk(2)
    soft = batch.soft
    if ties is not None:
        return tie_loss(chosen, rejected, soft or certain(chosen), ties.log_tie, ties.kind)
    output = bradley_terry_loss(chosen, rejected, batch.margins, soft=soft)
    if kind == "bradley_terry":
        return output
    target = torch.ones_like(chosen) if soft is None else 2 * soft.labels - 1
    weights = None if soft is None else soft.weights.repeat(2)
    squares = mse_loss(torch.cat([chosen, rejected]), torch.cat([target, -target]), weights)
    return LossOutput(squares.loss, {**squares.metrics, **output.metrics})


def certain(like: Tensor) -> SoftLabels:
    """Labels and weights 1, as many as ``like`` (B,) has elements."""
    ones = torch.ones_like(like, dtype=torch.float32)
    return SoftLabels(ones, ones)


def new_ties(settings: LanguageRewardModel, pairs: Sequence[PreferencePair], path: str) -> Ties | None:
    """The model of ties that the settings ask for; None without one.

    A learned parameter starts where equal replies tie as often as the pairs do.  Raises UserError where the pairs do not
    say win or tie, have margins, or hold no tie to learn from.
    """
    if settings.ties == "half":
        return None
    kind: TieModel = settings.ties
    shared = next((pair.label for pair in pairs if pair.label not in (0.5, 1.0)), None)
    if shared is not None:
        raise UserError(
            f"{path}: model.ties={kind} needs a label of 1, 0.5 or 0 in every row, not {shared:g}; write one row for each"
            " vote, or leave model.ties out."
        )
    if any(pair.margin for pair in pairs):
        raise UserError(f"{path}: model.ties={kind} has no place for margins; remove them, or leave model.ties out.")
    if settings.tie_parameter:
        return Ties(kind, log_tie_of(kind, settings.tie_parameter), learned=False)
    tied = sum(pair.tied for pair in pairs)
    if not tied:
        raise UserError(
            f"{path}: no row is a tie (label 0.5), so the parameter of ties cannot be learned; give model.tie_parameter, or"
            " leave model.ties out."
        )
    return Ties(kind, log_tie_of_share(tied, len(pairs)), learned=True)


def fit_head(
    head: ScalarHead, features: Tensor, margins: Tensor, decay: float, soft: SoftLabels | None = None
) -> float:
    """Fits the head alone to features (2n, D) of n chosen, then n rejected replies; returns its accuracy on them.

    Minimizes the mean Bradley-Terry loss plus decay · |w|², which is convex, by L-BFGS from w = 0.  Linear probing
    before fine-tuning (Kumar et al. 2022, arXiv 2202.10054): from a random head the first steps would distort
    good features.
    """
    nn.init.zeros_(head.linear.weight)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        chosen, rejected = head(features).chunk(2)
        loss = bradley_terry_loss(chosen, rejected, margins, soft=soft).loss
        mean = loss.total / loss.count + decay * head.linear.weight.square().sum()
        mean.backward()  # type: ignore[no-untyped-call]
        return float(mean.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()
    with torch.no_grad():
        chosen, rejected = head(features).chunk(2)
    return share_ordered(chosen, rejected, soft)


def share_ordered(chosen: Tensor, rejected: Tensor, soft: SoftLabels | None) -> float:
    """The share of the pairs (n,) that are no ties whose chosen reply scores higher."""
    ordered = (chosen > rejected).float()
    return float((ordered if soft is None else ordered[soft.labels != 0.5]).mean())


def new_model(config: RewardConfig, device: torch.device) -> RewardModel:
    """The base model with a new head, initialized from torch's global generator.

    Raises UserError where ``model.input_dim`` is not the base model's width.
    """
    settings = config.model
    backbone = open_trunk(settings.base_model).to(device).eval()  # may be another reward model's
    head: RewardMLP | ScalarHead = ScalarHead(backbone.width)  # drawn for both kinds, so that old seeds keep their MLP
    if isinstance(config, LanguageRewardConfig):
        keep_layers(backbone, config.model.layers)
    else:
        sizes = config.model
        backbone.requires_grad_(False)
        if sizes.input_dim != backbone.width:
            raise UserError(
                f"model.input_dim is {sizes.input_dim}, {sizes.base_model} has width {backbone.width}; type"
                f" model.input_dim={backbone.width}, or leave input_dim and hidden_dim out (and --config"
                " configs/reward_model.yaml) to train the whole model."
            )
        head = RewardMLP(sizes.input_dim, sizes.hidden_dim, sizes.num_layers)
    return RewardModel(backbone, head, settings.pooling).to(device)


def train(config: RewardConfig, run: Run) -> dict[str, float]:
    """Trains the reward model and saves it; returns ``finish``'s metrics."""
    device = mesh.local_device(config.device)
    settings, options = config.model, config.training
    tokenizer = open_tokenizer(settings.base_model)
    torch.manual_seed(run.derive("head"))
    model = new_model(config, device)
    probe_decay, head_learning_rate = 0.0, options.peak_rate
    if isinstance(config, LanguageRewardConfig):
        probe_decay = config.training.probe_decay
        head_learning_rate = config.training.head_learning_rate or options.peak_rate
    data = read_pairs(config.data, config.model, tokenizer, run.seed)
    pairs, heldout = data.train, decided(data.heldout)
    if not decided(pairs):
        raise UserError(
            f"{config.data.train}: every row is a tie (label 0.5), which says nothing about which reply is better."
        )
    ties = new_ties(config.model, pairs, config.data.train) if isinstance(config, LanguageRewardConfig) else None
    kind = settings.objective
    if kind == "auto":
        kind = "mse" if settings.kind == "features" else "bradley_terry"
    grouped = units(pairs, options.group_by_prompt)
    require_fit(settings.base_model, model.backbone, tokenizer, longest_text([*pairs, *heldout]))
    lengths = [unit_length(pairs, rows) for rows in grouped]
    tokens = tokens_in_a_pass(sum(lengths), len(grouped), options)
    processes = spread([model.backbone], config.parallel)
    run.plan(
        {
            "model": describe_model(model, f"{settings.base_model}, {settings.kind}, {settings.pooling} pooling"),
            "data": data.report,
            "pairs": data.describe(),
            "loss": kind if ties is None else f"{kind} with ties after {ties.kind}",
            "steps": describe_steps(len(grouped), options, "prompts" if options.group_by_prompt else "rows"),
            "memory": describe_memory(model, model.backbone.width, tokens),
            **processes,
        },
        memory_by_strategy(config, model, model.backbone.width, tokens),
    )

    def prepare_head() -> None:
        """Measures the features' statistics and, where asked, fits the head before the backbone moves."""
        if not isinstance(model.head, ScalarHead):
            return
        measured = pairs if probe_decay else pairs[:MAX_MEASURED_PAIRS]
        features = reply_features(model, measured, device, config.precision)
        model.head.measure(features)
        if probe_decay:
            margins = torch.tensor([pair.margin for pair in measured], device=device)
            soft = soft_labels(measured)
            accuracy = fit_head(model.head, features, margins, probe_decay, soft.to(device) if soft else None)
            run.say(f"head fitted to the untrained backbone's features: accuracy {accuracy:.0%} on the training pairs")

    def pack(unit_indices: Sequence[int]) -> PreferenceBatch:
        rows = [row for unit in unit_indices for row in grouped[unit]]
        return pack_preferences([pairs[r] for r in rows], rows).to(device)

    epochs = Epochs(lengths, pack, lambda batch: objective(model, batch, kind, ties), options, config.precision)
    groups = [
        (list(model.backbone.parameters()), options.peak_rate),
        (list(model.head.parameters()), head_learning_rate),
    ]
    trained: nn.Module = model
    if ties is not None:
        trained = nn.ModuleList([model, ties.to(device)])
        groups.append(([ties.log_tie], head_learning_rate))
    train_epochs(run, trained, groups, epochs, before_first_step=prepare_head)
    return finish(run, model, tokenizer, pairs, heldout, device, config, ties)


def finish(
    run: Run,
    model: RewardModel,
    tokenizer: Tokenizer,
    pairs: Sequence[PreferencePair],
    heldout: Sequence[PreferencePair],
    device: torch.device,
    config: RewardConfig,
    ties: Ties | None,
) -> dict[str, float]:
    """Measures the scores' mean and deviation, and saves the model.

    Returns ``train_accuracy``; with a model of ties ``tie_parameter``; where pairs are held out, ``heldout_accuracy`` (equal
    scores count 1/2) and ``heldout_pairs``.
    """
    chosen, rejected = score_pairs(model, pairs, device, config.precision)
    model.normalize(torch.cat([chosen, rejected]).to(device))
    metrics = {"train_accuracy": share_ordered(chosen, rejected, soft_labels(pairs))}
    if ties is not None:
        metrics["tie_parameter"] = ties.value()
    if heldout:
        metrics["heldout_accuracy"] = heldout_accuracy(model, heldout, device, config.precision)[0]
        metrics["heldout_pairs"] = float(len(heldout))
    run.record(metrics)

    save_artifact(run, model, tokenizer, "reward", metrics)
    weights = model.head if config.model.kind == "features" else model
    save_pt(run, "reward_model_final.pt", weights, {"metrics": metrics})
    run.say(f"wrote {run.directory / 'model'} and {run.directory / 'reward_model_final.pt'}")
    if heldout:
        run.say(f"held-out accuracy {metrics['heldout_accuracy']:.3f} on {len(heldout)} pairs")
    return metrics
