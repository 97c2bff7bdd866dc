"""DPO: preference optimization without a reward model.  Rafailov et al. 2023 (arXiv 2305.18290), equation 7.

Numbered details:
1. loss −log σ(β·[(log π_c − log π_ref,c) − (log π_r − log π_ref,r)]), a sum over the count of pairs;
2. log-probs are masked sums over the reply's tokens, its EOS included; the prompt is in none of the four;
3. the reference is the model that training starts from; its log-probs are computed once and saved;
4. so the loss of the first step is ln 2;
5. a pair's prompt is encoded once; chosen and rejected are its two continuations;
6. label smoothing ε: (1−ε)·loss + ε·loss with the pair swapped (conservative DPO, Mitchell 2023);
7. a row's "label" y is the probability that chosen is preferred: y·loss + (1−y)·loss with the pair swapped, a tie is 1/2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from accord.config.preference import DPOConfig
from accord.data.packing import pack_preferences
from accord.data.preferences import PreferencePair, decided, longest_text, read_pairs, unit_length, units
from accord.distributed import mesh
from accord.distributed.shards import spread
from accord.functional.logprobs import sequence_sums
from accord.functional.losses.preference import dpo_loss
from accord.models.backbone import Backbone
from accord.models.language import reply_logprobs
from accord.models.reference import FrozenReference, Reference
from accord.runtime.device import autocast
from accord.runtime.run import Run
from accord.training.artifact import open_model, open_tokenizer, require_fit, save_model
from accord.training.checkpoint import read_pt, write_pt
from accord.training.describe import (
    describe_memory,
    describe_model,
    describe_steps,
    memory_by_strategy,
    tokens_in_a_pass,
)
from accord.training.epochs import Epochs, train_epochs
from accord.types import LossOutput, Packed, PreferenceBatch

MAX_JUDGED_PAIRS = 256
"""Training pairs that decide on the note about falling log-probs where no pair is held out."""


def pair_logprobs(logprobs: Callable[[Packed, Tensor], Tensor], batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """(B,) log-probs of the chosen and (B,) of the rejected replies; ``logprobs(packed, at)`` scores tokens."""
    packed = batch.packed
    segments = torch.cat([batch.chosen, batch.rejected])
    index, owner = packed.span(segments)
    chosen, rejected = sequence_sums(logprobs(packed, index), owner, len(segments)).chunk(2)
    return chosen, rejected


@torch.no_grad()
def reference_logprobs(
    reference: Reference, pairs: Sequence[PreferencePair], device: torch.device, precision: str, size: int
) -> Tensor:
    """(n, 2) log-probs of chosen and rejected under the reference, on the CPU.  Ranks share the passes."""
    passes = torch.split(torch.arange(len(pairs)), size)
    found = torch.zeros(len(pairs), 2)
    for number, counted in mesh.passes_of_this_rank(len(passes)):
        indices = passes[number]
        batch = pack_preferences([pairs[int(i)] for i in indices], indices.tolist()).to(device)
        with autocast(device, precision):
            logprobs = torch.stack(pair_logprobs(reference.logprobs, batch), 1)
        if counted:
            found[indices] = logprobs.float().cpu()
    return mesh.add(found)


def objective(
    backbone: Backbone, batch: PreferenceBatch, reference: Tensor, beta: float, label_smoothing: float
) -> LossOutput:
    """The loss of one micro-batch; ``reference`` holds (n, 2) log-probs of the whole data set."""
    chosen, rejected = pair_logprobs(partial(reply_logprobs, backbone), batch)
    ref = reference[batch.indices]
    return dpo_loss(chosen, rejected, ref[:, 0], ref[:, 1], beta, label_smoothing, batch.soft)


def train(config: DPOConfig, run: Run) -> dict[str, float]:
    """Trains the policy and saves it; returns the last step's metrics, and held-out accuracy where pairs are held out."""
    device = mesh.local_device(config.device)
    options = config.training
    tokenizer = open_tokenizer(config.model.base_model)
    backbone = open_model(config.model.base_model, device)
    data = read_pairs(config.data, config.model, tokenizer, run.seed)
    pairs, heldout = data.train, decided(data.heldout)
    grouped = units(pairs, options.group_by_prompt)
    require_fit(config.model.base_model, backbone, tokenizer, longest_text([*pairs, *heldout]))
    processes = spread([backbone], config.parallel)
    groups = [(list(backbone.parameters()), options.peak_rate)]
    lengths = [unit_length(pairs, rows) for rows in grouped]
    tokens = tokens_in_a_pass(sum(lengths), len(grouped), options)
    run.plan(
        {
            "model": describe_model(backbone, config.model.base_model),
            "data": f"{config.data.train}: {data.report}",
            "pairs": data.describe(),
            "reference": "the same model; its log-probs are computed once and saved",
            "steps": describe_steps(len(grouped), options, "prompts" if options.group_by_prompt else "rows"),
            "memory": describe_memory(backbone, backbone.width, tokens),
            **processes,
        },
        memory_by_strategy(config, backbone, backbone.width, tokens),
    )
    saved = run.directory / "reference.pt"
    if run.resume and saved.exists() and read_pt(saved).get("key") == run.key:
        reference = read_pt(saved)["logprobs"]
    else:
        size = options.micro_batch_size or options.batch_size
        reference = reference_logprobs(FrozenReference(backbone), [*pairs, *heldout], device, config.precision, size)
        run.open_folders()
        if run.writes:
            write_pt(saved, {"key": run.key, "logprobs": reference})
    reference = reference.to(device)

    def pack(unit_indices: Sequence[int]) -> PreferenceBatch:
        rows = [row for unit in unit_indices for row in grouped[unit]]
        return pack_preferences([pairs[r] for r in rows], rows).to(device)

    epochs = Epochs(
        lengths,
        pack,
        lambda batch: objective(backbone, batch, reference, options.beta, options.label_smoothing),
        options,
        config.precision,
    )
    last = train_epochs(run, backbone, groups, epochs)
    judged, first = (heldout, len(pairs)) if heldout else (pairs[:MAX_JUDGED_PAIRS], 0)
    logprobs = reference_logprobs(FrozenReference(backbone), judged, device, config.precision, options.batch_size)
    log_ratios = logprobs - reference[first : first + len(judged)].cpu()
    if heldout:
        last["heldout_accuracy"] = float((0.5 * (log_ratios[:, 0] - log_ratios[:, 1]).sign() + 0.5).mean())
        last["heldout_margin"] = options.beta * float((log_ratios[:, 0] - log_ratios[:, 1]).mean())
        run.record({name: last[name] for name in ("heldout_accuracy", "heldout_margin")})
    if bool((log_ratios.mean(0) < 0).all()):
        run.say(
            f"note: on {len(judged)} {'held-out' if heldout else 'training'} pairs chosen and rejected log-probs both"
            " fell; DPO trains only their margin, so this is usual. A smaller learning rate or a larger training.beta"
            " keeps them closer to the reference."
        )
    save_model(run, backbone, tokenizer, "dpo", last, {"beta": options.beta})
    return last
