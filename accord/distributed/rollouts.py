"""Rollouts of text over ranks: every rank samples, scores and reads a part, and then all hold the whole rollout.

A reply is a function of its prompt, its key and the weights, so the rollout is that of one rank, and what is computed from
it (advantages, whitening, KL, statistics) is the same on every rank without further exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from accord.distributed import mesh
from accord.distributed.shards import gathered
from accord.errors import UserError
from accord.rollout.collect import read_replies, score
from accord.rollout.generate import generate
from accord.rollout.noise import reply_keys
from accord.rollout.text_source import TextSource
from accord.runtime.device import autocast
from accord.types import Generation, Packed, Rollout


def require_prompts(prompts: int) -> None:
    """Raises UserError where a rollout has fewer prompts than there are ranks."""
    if prompts < mesh.size():
        raise UserError(
            f"parallel.nproc: {mesh.size()} processes share the prompts of a rollout, and there are {prompts}"
            " (training.replies / training.samples_per_prompt); use fewer processes, or more replies."
        )


@dataclass(frozen=True, slots=True)
class DividedTextSource:
    """The rollouts of a ``TextSource``, whose prompts are divided among the ranks.

    ``whole_while_scoring``: models whose shards are gathered while replies are scored.
    """

    source: TextSource
    whole_while_scoring: Sequence[nn.Module] = ()

    def collect(self, iteration: int) -> Rollout:
        """The rollout of an iteration, whole on every rank."""
        source, task = self.source, self.source.task
        samples = task.samples_per_prompt
        rows = source.prompt_rows(iteration)
        keys = reply_keys(source.run.seed, "sampling", iteration, rows, samples)
        prompt_rows = torch.tensor(rows).repeat_interleave(samples)
        mine = mesh.shares([len(task.prompts.prompts[row]) for row in rows], mesh.size())[mesh.rank()]
        places = [prompt * samples + sample for prompt in mine for sample in range(samples)]
        mesh.at(f"the rollout of iteration {iteration}")
        with autocast(source.device, source.precision):
            sampler = source.sampler()
            with gathered(sampler):
                part, values = generate(
                    sampler,
                    [task.prompts.prompts[rows[prompt]] for prompt in mine],
                    task.decoding,
                    [keys[place] for place in places],
                    samples,
                    source.readout,
                    len(keys),
                )
            with ExitStack() as stack:
                for model in self.whole_while_scoring:
                    stack.enter_context(gathered(model))
                scores, terms = score(task, prompt_rows[places].tolist(), part)
            prompts = [task.prompts.prompts[row] for row in prompt_rows.tolist()]
            generation = whole_generation(part, places, prompts, task.decoding.pad_id)
            ref_logprobs = read_divided(generation, task.chunk, task.reference.logprobs)
        steps = generation.mask.shape[1]
        return Rollout(
            generation,
            prompt_rows,
            torch.full_like(generation.responses, iteration),
            ref_logprobs,
            whole_rows(scores, places, len(keys)),
            {name: whole_rows(x, places, len(keys)) for name, x in terms.items()},
            None if source.readout is None else whole_rows(values, places, len(keys), steps),
        )

    def state_dict(self) -> dict[str, Any]:
        """Empty, as the source's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def whole_rows(part: Tensor, places: Sequence[int], rows: int, columns: int = 0) -> Tensor:
    """(B,) or (B, T) on every rank, from each rank's rows (b,) or (b, t), which stand at ``places`` of ``rows``.

    With ``columns`` each row is cut or filled with zeros to T of them.
    """
    whole = part.new_zeros(rows, *([columns] if columns else part.shape[1:]))
    if part.dim() > 1:
        width = min(whole.shape[1], part.shape[1])
        whole[places, :width] = part[:, :width]
    else:
        whole[places] = part
    return mesh.add(whole)


def whole_generation(
    part: Generation, places: Sequence[int], prompts: Sequence[Sequence[int]], pad_id: int
) -> Generation:
    """The replies to all ``prompts`` (B) on every rank, from each rank's part of them, at ``places``."""
    rows = len(prompts)
    lengths = whole_rows(part.lengths, places, rows)
    steps = int(lengths.max())
    mask = torch.arange(steps, device=lengths.device) < lengths[:, None]
    responses = torch.where(mask, whole_rows(part.responses, places, rows, steps), pad_id)
    logprobs = whole_rows(part.logprobs, places, rows, steps)
    ended = whole_rows(part.ended.long(), places, rows) > 0
    return Generation(tuple(tuple(p) for p in prompts), responses, mask, logprobs, ended)


def from_main(rollout: Rollout | None, device: torch.device) -> Rollout:
    """Rank 0's rollout, on every rank; the others give None.  It has no readout."""
    if mesh.size() == 1 and rollout is not None:
        return rollout
    sent: dict[str, Any] = {}
    if rollout is not None:
        prompts = [list(prompt) for prompt in rollout.generation.prompts]
        sent = {"prompts": prompts, "steps": rollout.generation.mask.shape[1], "terms": list(rollout.terms)}
    sent = mesh.broadcast(sent)
    rows = len(sent["prompts"])

    def shared(x: Tensor | None, like: Tensor) -> Tensor:
        return mesh.add(like if x is None else x.to(like.dtype))

    numbers, whole = (
        torch.zeros(rows, sent["steps"], device=device),
        partial(torch.zeros, dtype=torch.int64, device=device),
    )
    made = rollout.generation if rollout else None
    generation = Generation(
        tuple(tuple(prompt) for prompt in sent["prompts"]),
        shared(made.responses if made else None, whole(rows, sent["steps"])),
        shared(made.mask if made else None, whole(rows, sent["steps"])) > 0,
        shared(made.logprobs if made else None, numbers),
        shared(made.ended if made else None, whole(rows)) > 0,
    )
    return Rollout(
        generation,
        shared(rollout.prompt_rows.to(device) if rollout else None, whole(rows)).cpu(),
        shared(rollout.weight_versions if rollout else None, whole(rows, sent["steps"])),
        shared(rollout.ref_logprobs if rollout else None, numbers),
        shared(rollout.scores if rollout else None, numbers[:, 0]),
        {name: shared(rollout.terms[name] if rollout else None, numbers[:, 0]) for name in sent["terms"]},
    )


@torch.no_grad()
def read_divided(generation: Generation, size: int, read: Callable[[Packed, Tensor], Tensor]) -> Tensor:
    """``read_replies``, whose passes are divided among the ranks; equally many on each, the result on all."""
    if mesh.size() == 1:
        return read_replies(generation, size, read)
    passes = torch.split(torch.arange(len(generation.prompts)), size)
    whole = torch.zeros(generation.mask.shape, device=generation.mask.device)
    for number, counted in mesh.passes_of_this_rank(len(passes)):
        rows = passes[number]
        values = read_replies(generation[rows], len(rows), read)
        if counted:
            whole[rows] = values
    return mesh.add(whole)
