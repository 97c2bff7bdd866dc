"""What the pair of ranks runs, and one process alone: the same function, so that results can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from accord.algorithms import dpo, reward_model
from accord.config.common import Optimizer, Parallel
from accord.data.packing import pack_preferences
from accord.data.preferences import PreferencePair
from accord.data.supervised import SupervisedExample
from accord.data.tokenizer import small_tokenizer
from accord.distributed import mesh
from accord.distributed.shards import gathered, spread
from accord.distributed.tensors import whole
from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.models.reference import FrozenReference
from accord.models.reward import RewardModel, ScalarHead
from accord.runtime.run import Ranks, Run, StageIdentity
from accord.training.artifact import save_artifact
from accord.training.cross_entropy import cross_entropy, mean_cross_entropy
from accord.training.epochs import Epochs, train_epochs
from accord.types import Packed

TEXTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [3, 4, 5], [9, 8, 7, 6], [2, 2], [5, 1, 5, 1, 5], [7, 3]]
PAIRS = [(t, [n + 1 for n in t[:3]], t[::-1][:4]) for t in TEXTS]


def tiny(family: str) -> Backbone:
    """A model of a few thousand weights in float64."""
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    return small_backbone(family, 32, 2, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id).double().eval()


def new_run(folder: str, resume: bool = False, save_every: int = 100) -> Run:
    place = Path(folder)
    ranks = Ranks(mesh.is_main(), mesh.anywhere)
    identity = StageIdentity("s", place / "out", place / "logs", 3, "key")
    return Run(identity, 1, save_every, resume, False, ranks=ranks)


def train(
    folder: str, stage: str, family: str, micro: int = 2, stop: int = 0, resume: bool = False, **parallel: Any
) -> dict[str, Any]:
    """Five steps of three rows (the last of one) of a supervised stage; the metrics of each, weights and gradients.

    ``stop``: the step after which the run is asked to stop, on the last rank only.
    """
    model: Any = tiny(family)
    head: list[torch.nn.Parameter] = []
    backbone = model
    if stage == "reward":
        model = RewardModel(backbone, ScalarHead(32).double(), "mean")
        head = list(model.head.parameters())
    spread([backbone], Parallel(**parallel))
    groups = [(list(backbone.parameters()), 1e-2), (head, 2e-2)]
    pairs = [PreferencePair(tuple(p), tuple(c), tuple(r), 0.0) for p, c, r in PAIRS]
    pack: Any = lambda rows: pack_preferences([pairs[r] for r in rows], list(rows))  # noqa: E731
    if stage == "sft":
        pack, loss = lambda rows: packed_texts(rows), partial(cross_entropy, backbone)
    elif stage == "reward":
        loss = lambda batch: reward_model.objective(model, batch, "bradley_terry")  # noqa: E731
    else:
        reference = dpo.reference_logprobs(FrozenReference(backbone), pairs, torch.device("cpu"), "float32", 2).double()
        loss = lambda batch: dpo.objective(backbone, batch, reference, 0.1, 0.1)  # noqa: E731
    settings = Optimizer(batch_size=3, micro_batch_size=micro, num_epochs=2, weight_decay=0.1, schedule="linear")
    run = new_run(folder, resume)
    steps: list[dict[str, float]] = []
    last = mesh.rank() == mesh.size() - 1

    def after(metrics: dict[str, float]) -> None:
        steps.append({name: value for name, value in metrics.items() if name != "imbalance"})
        run.stop.raised = last and len(steps) == stop

    lengths = [len(t) for t in TEXTS]
    with run:
        try:
            train_epochs(run, model, groups, Epochs(lengths, pack, loss, settings), after_step=after)
        except Exception as error:
            if not stop:
                raise
            return {"steps": steps, "stopped": str(error)}
    figures = {
        n: [whole(p).tolist(), whole(p.grad).tolist()] for n, p in model.named_parameters() if p.grad is not None
    }
    return {"steps": steps, "weights": figures}


def packed_texts(rows: Sequence[int]) -> Packed:
    """Texts whose tokens are all labels but the first, except for row 1, which has no label."""
    masks = [[False, *[row != 1] * (len(TEXTS[row]) - 1)] for row in rows]
    return Packed.of([TEXTS[row] for row in rows], loss_masks=masks)


def generate(family: str, strategy: str) -> list[Any]:
    """Hidden states and logits of prefill and two steps, by every rank, with weights gathered once or each time."""
    model = tiny(family)
    spread([model], Parallel(strategy=strategy))
    found = []
    for once in (True, False):
        with gathered(model) if once else torch.no_grad(), torch.no_grad():
            hidden, cache = model.prefill(Packed.of([[1, 2, 3], [4, 5]]), 2)
            states = [hidden, *(model.step(torch.tensor([6 + i, 8]), cache) for i in range(2))]
            found.append([*torch.cat(states).flatten().tolist(), *model.logits(torch.cat(states)).flatten().tolist()])
    examples = [SupervisedExample(tuple(t), (False, *[True] * (len(t) - 1))) for t in TEXTS]
    return [*found, mean_cross_entropy(model, examples, "float32", 2)]


def artifact(folder: str, family: str, strategy: str) -> list[str]:
    """Saves a reward model on a backbone; returns the names of the files."""
    torch.manual_seed(1)
    model = RewardModel(tiny(family).float(), ScalarHead(32), "mean")
    spread([model.backbone], Parallel(strategy=strategy))
    with new_run(folder) as run:
        run.open_folders()
        save_artifact(run, model, small_tokenizer(), "reward", {})
    return sorted(path.name for path in (Path(folder) / "out" / "model").iterdir())
