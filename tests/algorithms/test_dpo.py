"""DPO: the four log-probs, the first step, the reference, and what is reported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.algorithms import dpo
from accord.data.packing import pack_preferences
from accord.data.preferences import PairLengths, PreferencePair, load_preferences
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.functional.losses.preference import dpo_loss
from accord.models.backbone import Backbone
from accord.models.language import reply_logprobs
from accord.models.reference import FrozenReference
from accord.training.checkpoint import read_pt
from accord.training.updater import Updater
from accord.types import Packed

# two pairs share a prompt, one of them a reply as well; another prompt begins as theirs does
PAIRS = [
    PreferencePair((5, 6, 7, 8, 9, 10, 11, 12, 13), (20, 21, 1), (22, 1)),
    PreferencePair((5, 6, 7, 8, 9, 10, 11, 12, 13), (22, 1), (23, 24, 25, 26, 1)),
    PreferencePair((5, 6, 7, 8, 9, 10, 11, 12, 14), (20, 1), (21, 1)),
    PreferencePair((30, 31), (32,), (33, 34)),
]


def naive(backbone: Backbone, prompt: tuple[int, ...], reply: tuple[int, ...]) -> float:
    """Log p of the reply, its end included and the prompt's tokens excluded; a loop over one text."""
    logits = backbone.logits(backbone(Packed.of([[*prompt, *reply]]))).detach().log_softmax(-1)
    return sum(float(logits[len(prompt) + t - 1, token]) for t, token in enumerate(reply))


@pytest.mark.parametrize("family", ["mamba", "transformer"])
def test_logprobs_are_those_of_separate_rows(make_tiny: Callable[..., Backbone], family: str) -> None:
    """Chosen and rejected are separate segments that share no context but the prompt."""
    backbone = make_tiny(family)
    expected = torch.tensor([[naive(backbone, p.prompt, r) for r in (p.chosen, p.rejected)] for p in PAIRS])
    both = dpo.pair_logprobs(partial(reply_logprobs, backbone), pack_preferences(PAIRS, range(4)))
    torch.testing.assert_close(torch.stack(both, 1).detach(), expected, rtol=0, atol=2e-5)
    for size in (1, 2, 3):
        found = dpo.reference_logprobs(FrozenReference(backbone), PAIRS, torch.device("cpu"), "float32", size)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        assert not found.requires_grad


def test_the_first_loss_is_ln_2_and_the_margin_0(make_tiny: Callable[..., Backbone]) -> None:
    backbone = make_tiny("mamba")
    reference = dpo.reference_logprobs(FrozenReference(backbone), PAIRS, torch.device("cpu"), "float32", 2)
    for smoothing in (0.0, 0.2):
        output = dpo.objective(backbone, pack_preferences(PAIRS, range(4)), reference, 0.5, smoothing)
        assert output.loss.value() == pytest.approx(math.log(2), abs=1e-5)
        assert output.metrics["margin"].value() == pytest.approx(0, abs=1e-5)


def test_pairs_meet_their_own_reference_log_probs(make_tiny: Callable[..., Backbone]) -> None:
    """A batch is rows of the dataset in any order; with the references of other rows the margin would not be 0."""
    backbone = make_tiny("mamba")
    reference = dpo.reference_logprobs(FrozenReference(backbone), PAIRS, torch.device("cpu"), "float32", 2)
    for rows in ([3, 0], [2], [1, 3, 2]):
        batch = pack_preferences([PAIRS[r] for r in rows], rows)
        assert dpo.objective(backbone, batch, reference, 0.5, 0.0).loss.value() == pytest.approx(math.log(2), abs=1e-5)
    wrong = pack_preferences([PAIRS[0], PAIRS[1]], [1, 0])
    assert dpo.objective(backbone, wrong, reference, 0.5, 0.0).loss.value() > 0.8


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_the_loss_is_the_documented_formula(make_tiny: Callable[..., Backbone], smoothing: float) -> None:
    policy, ref = make_tiny("mamba", 1), make_tiny("mamba", 2)
    reference = dpo.reference_logprobs(FrozenReference(ref), PAIRS, torch.device("cpu"), "float32", 4)
    output = dpo.objective(policy, pack_preferences(PAIRS, range(4)), reference, 0.7, smoothing)
    losses, chosen, rejected = [], [], []
    for pair in PAIRS:
        chosen.append(naive(policy, pair.prompt, pair.chosen))
        rejected.append(naive(policy, pair.prompt, pair.rejected))
        z = chosen[-1] - naive(ref, pair.prompt, pair.chosen)
        z = 0.7 * (z - (rejected[-1] - naive(ref, pair.prompt, pair.rejected)))
        losses.append((1 - smoothing) * math.log1p(math.exp(-z)) + smoothing * math.log1p(math.exp(z)))
    assert output.loss.value() == pytest.approx(sum(losses) / 4, abs=1e-5)
    # separately, since the margin may rise while both fall
    assert output.metrics["chosen_logprob"].value() == pytest.approx(sum(chosen) / 4, abs=1e-4)
    assert output.metrics["rejected_logprob"].value() == pytest.approx(sum(rejected) / 4, abs=1e-4)


# ------------------------------------------------------------------------------------- the stage
def values(world: Any, **training: Any) -> dict[str, Any]:
    given = {"batch_size": 4, "num_epochs": 2, "learning_rate": 0.01, **training}
    data = {"train": world.preferences, "heldout_fraction": 0.0}
    return {"model": {"base_model": world.mamba, "max_length": 96}, "data": data, "training": given}


def test_the_stage_starts_at_ln_2_and_prefers_the_chosen_at_the_end(stage: Any, world: Any, lines: Any) -> None:
    done = stage("dpo", values(world, num_epochs=4)).done["metrics"]
    rows = lines("dpo")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert rows[0]["chosen_logprob"] != rows[0]["rejected_logprob"]
    assert done["loss"] < 0.6
    assert done["accuracy"] == 1.0
    assert done["margin"] == pytest.approx(done["chosen_reward"] - done["rejected_reward"], abs=1e-5)


def test_the_reference_is_the_start_and_is_made_once(
    stage: Any,
    world: Any,
    tokenizer: Tokenizer,
    make_tiny: Callable[..., Backbone],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resumed run must not take the trained policy for its reference."""
    path = tmp_path / "out" / "dpo" / "reference.pt"
    stop = {"at": 3}
    step = Updater.step

    def stopped(self: Any, *arguments: Any) -> dict[str, float]:
        if self.steps + 1 == stop["at"]:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Updater, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        stage("dpo", values(world), save_every=1)
    stop["at"] = 0
    written = path.stat()
    stage("dpo", values(world), resume=True)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    saved = read_pt(path)["logprobs"]
    pairs = load_preferences(world.preferences, tokenizer, PairLengths(72, 96)).pairs
    expected = dpo.reference_logprobs(FrozenReference(make_tiny("mamba")), pairs, torch.device("cpu"), "float32", 4)
    torch.testing.assert_close(saved, expected, rtol=0, atol=1e-5)
    stage("dpo", values(world, beta=0.3))  # a run from the beginning: a reference of its own, though the file exists
    assert path.stat().st_mtime_ns != written.st_mtime_ns


def test_held_out_pairs_are_measured_and_not_learned(stage: Any, world: Any, lines: Any) -> None:
    given = values(world)
    given["data"]["heldout_fraction"] = 0.4
    done = stage("dpo", given).done["metrics"]
    assert 0 <= done["heldout_accuracy"] <= 1
    assert lines("dpo")[-1]["heldout_accuracy"] == done["heldout_accuracy"]
    assert lines("dpo")[-1]["heldout_margin"] == done["heldout_margin"]
    given["data"] = {"train": world.preferences, "heldout": world.preferences}
    assert stage("dpo", given, "other").done["metrics"]["heldout_accuracy"] == 1.0  # what it has learned


def test_nothing_left_to_train_on_is_an_error(stage: Any, world: Any) -> None:
    given = values(world)
    given["data"]["heldout_fraction"] = 1.0
    with pytest.raises(UserError, match=r"heldout_fraction"):
        stage("dpo", given)


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_of_pairs_change_nothing(
    stage: Any, world: Any, tmp_path: Path, weights_of: Callable[[Path], dict[str, Tensor]], micro: int
) -> None:
    for name, size in (("whole", 0), ("cut", micro)):
        stage("dpo", values(world, batch_size=8, micro_batch_size=size, adam_eps=1e-3), name)
    whole, cut = (weights_of(tmp_path / "out" / n / "dpo_final.pt") for n in ("whole", "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------- held-out pairs
@pytest.mark.parametrize("turned", [False, True])
def test_held_out_pairs_meet_their_own_reference(stage: Any, world: Any, tmp_path: Path, turned: bool) -> None:
    """Held out are the training pairs in another order, as they are or turned around: all right, or all wrong.

    Against the reference of other pairs the lengths of the replies would decide.
    """
    rows = [json.loads(line) for line in Path(world.preferences).read_text(encoding="utf-8").splitlines()]
    swap = {"chosen": "rejected", "rejected": "chosen", "prompt": "prompt"} if turned else {k: k for k in rows[0]}
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps({swap[k]: v for k, v in row.items()}) + "\n" for row in rows[::-1]))
    data = {"train": world.preferences, "heldout": str(heldout)}
    training = {"batch_size": 4, "num_epochs": 4, "learning_rate": 0.01}
    model = {"base_model": world.mamba, "max_length": 96}
    done = stage("dpo", {"model": model, "data": data, "training": training})
    assert done.done["metrics"]["heldout_accuracy"] == (0.0 if turned else 1.0)


# ------------------------------------------------------------------------------------- both log-probs falling
def test_the_margin_may_rise_while_both_log_probs_fall() -> None:
    """Hand-computed: the chosen reply loses a nat, the rejected one three; both are in the metrics."""
    reference, policy = (-2.0, -2.0), (-3.0, -5.0)
    out = dpo_loss(*(torch.tensor([x]) for x in (*policy, *reference)), beta=0.5)
    found = {name: mean.value() for name, mean in out.metrics.items()}
    assert (found["margin"], found["accuracy"]) == (1.0, 1.0)
    assert (found["chosen_reward"], found["rejected_reward"]) == (-0.5, -1.5)
    assert (found["chosen_logprob"], found["rejected_logprob"]) == policy


NOTE = "chosen and rejected log-probs both fell"


def trained(stage: Any, world: Any, tmp_path: Path, data: dict[str, Any], name: str = "dpo") -> tuple[bool, Any]:
    """Whether the note stands in the log, and the metrics."""
    training = {"batch_size": 4, "num_epochs": 4, "learning_rate": 0.01}
    model = {"base_model": world.mamba, "max_length": 96}
    done = stage("dpo", {"model": model, "data": {"train": world.preferences, **data}, "training": training}, name)
    log = (tmp_path / "logs" / name / f"{name}.log").read_text(encoding="utf-8")
    return NOTE in log, done.done["metrics"]


@pytest.mark.parametrize(("trained_as", "fell"), [("rejected", True), ("chosen", False)])
def test_the_note_judges_the_held_out_pairs(
    stage: Any, world: Any, tmp_path: Path, trained_as: str, fell: bool
) -> None:
    """Both replies of each held-out pair begin as one that training lowers, or as one that it raises."""
    rows = [json.loads(line) for line in Path(world.preferences).read_text(encoding="utf-8").splitlines()]
    pairs = [{"prompt": r["prompt"], "chosen": r[trained_as], "rejected": r[trained_as] * 2} for r in rows]
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    said, _ = trained(stage, world, tmp_path, {"heldout": str(heldout)})
    assert said is fell


def test_without_held_out_pairs_the_note_judges_training_pairs(stage: Any, world: Any, tmp_path: Path) -> None:
    said, metrics = trained(stage, world, tmp_path, {"heldout_fraction": 0.0})
    assert not said
    assert metrics["chosen_reward"] > 0
    rows = [json.loads(line) for line in Path(world.preferences).read_text(encoding="utf-8").splitlines()]
    lowered = tmp_path / "lowered.jsonl"  # the rejected reply begins as the chosen one, which falls with it
    pairs = [{"prompt": r["prompt"], "chosen": r["rejected"], "rejected": r["rejected"] * 2} for r in rows]
    lowered.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    said, _ = trained(stage, world, tmp_path, {"train": str(lowered), "heldout_fraction": 0.0}, "lowered")
    assert said
