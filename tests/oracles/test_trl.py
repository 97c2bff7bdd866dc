"""SFT, reward model and DPO against TRL's trainers: the same texts and weights, one batch and four updates.

TRL tokenizes the texts, masks the prompts, pads and collates by itself.  Its labels are -100 on the tokens that the
prompt alone gives too (SFT), its completion mask is 0 there (DPO), and its reward is read at the last token that is
no padding; the first test holds that against the tokens that accord packs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accord.algorithms import dpo, reward_model
from accord.config.common import Optimizer
from accord.data.packing import pack_preferences, pack_supervised
from accord.data.preferences import PreferencePair
from accord.data.supervised import SupervisedExample
from accord.functional.losses.preference import bradley_terry_loss
from accord.models.reference import FrozenReference
from accord.models.reward import RewardMLP, RewardModel, ScalarHead
from accord.models.transformer import Transformer, unfuse
from accord.training.cross_entropy import cross_entropy
from accord.training.updater import Updater
from accord.types import LossOutput, PreferenceBatch

os.environ.update({"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})  # TRL reports its use otherwise
pytest.importorskip("trl")
pytest.importorskip("datasets")

pytestmark = pytest.mark.oracle

PAD, EOS, VOCAB, WIDTH = 0, 1, 53, 32
BETA = 0.4
STEP = {"learning_rate": 2e-3, "max_grad_norm": 0.3}
OPENING = (40, 41, 42, 43, 44, 45, 46, 47, 48)  # long enough that accord reads it once for all
PAIRS = [
    PreferencePair((*OPENING, 5, 6), (7, 8, 9, EOS), (10, EOS), 0.7),
    PreferencePair((*OPENING, 5, 6), (10, EOS), (11, 12, 13, 14, 15, 16, EOS), 0.0),
    PreferencePair((*OPENING, 17), (18, 19, EOS), (20, 21, 22, 23, EOS), 0.0),
    PreferencePair((*OPENING, 24, 25, 26, 27), (28, EOS), (29, EOS), 1.2),
    PreferencePair((*OPENING, 3), (30, 31, 32, 33, 34, 35, 36, 37, EOS), (38, 39, EOS), 0.2),
    PreferencePair((*OPENING, 4, 4), (49, 50, EOS), (51, 52, 51, EOS), 0.0),
    PreferencePair((*OPENING, 9, 8, 7), (6, EOS), (5, 5, 5, 5, 5, EOS), 0.0),
    PreferencePair((*OPENING, 30, 20), (10, 11, 12, EOS), (13, EOS), 0.4),
]
EXAMPLES = [
    SupervisedExample((*p.prompt, *p.chosen), (False,) * len(p.prompt) + (True,) * len(p.chosen)) for p in PAIRS
]


# ------------------------------------------------------------------ TRL's side
def words(ids: Sequence[int]) -> str:
    return "".join({PAD: "<pad> ", EOS: "</s> "}.get(i, f"w{i} ") for i in ids)


def tokenizer() -> Any:
    """One token for each word; no special tokens of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"<pad>": PAD, "</s>": EOS, "<unk>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    plain = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def texts(kind: str) -> Any:
    """The rows as TRL takes them; replies end in the end token, so that it adds none."""
    from datasets import Dataset

    rows = []
    for pair in PAIRS:
        row: dict[str, Any] = {"prompt": words(pair.prompt)}
        if kind == "sft":
            row["completion"] = words(pair.chosen).strip()
        else:
            row |= {"chosen": words(pair.chosen).strip(), "rejected": words(pair.rejected).strip()}
        rows.append({**row, "margin": pair.margin} if kind == "reward" else row)
    return Dataset.from_list(rows)


def causal(seed: int) -> Any:
    """A tiny random Llama, large enough in its weights that no layer is near the identity."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_key_value_heads=2, **sizes, **ends))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def classifier(model: Any, score: nn.Module) -> Any:
    """The same trunk with a scalar at every position; transformers reads it at the last token that is no padding."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    peer = LlamaForSequenceClassification(LlamaConfig(**{**model.config.to_dict(), "num_labels": 1}))
    peer.model.load_state_dict(model.model.state_dict())
    peer.score = score
    return peer


def make_trainer(kind: str, model: Any, folder: Path, batch: int, reference: Any = None, **options: Any) -> Any:
    """In float32, on the CPU, rows in their order, Adam as accord's."""
    import trl

    trainer, config = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
    }[kind]
    if kind == "dpo":
        options = {"beta": BETA, **options}
    arguments = config(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        optim="adamw_torch",
        adam_epsilon=1e-5,
        lr_scheduler_type="linear",
        **STEP,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        **options,
    )
    extra = {"ref_model": reference} if kind == "dpo" else {}
    return trainer(model=model, args=arguments, train_dataset=texts(kind), processing_class=tokenizer(), **extra)


def first_batch(trainer: Any) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return batch


def their_loss(trainer: Any) -> Tensor:
    """Of the first batch; the gradients stay in the trainer's model."""
    trainer.model.train()
    loss: Tensor = trainer.compute_loss(trainer.model, first_batch(trainer))
    loss.backward()
    return loss.detach()


# ------------------------------------------------------------------ accord's side
def opened(peer: Any, folder: Path) -> Transformer:
    peer.save_pretrained(folder)
    return Transformer.open(folder)


def linear_head() -> tuple[RewardMLP, nn.Module]:
    """accord's head of one layer is TRL's own, but for a bias."""
    ours, theirs = RewardMLP(WIDTH, num_layers=1), nn.Linear(WIDTH, 1, bias=False)
    with torch.no_grad():
        ours.layers[0].bias.zero_()
        theirs.weight.copy_(ours.layers[0].weight)
    return ours, theirs


def normalized_head() -> tuple[ScalarHead, nn.Module]:
    ours, linear = ScalarHead(WIDTH), nn.Linear(WIDTH, 1)
    linear.load_state_dict(ours.linear.state_dict())
    return ours, nn.Sequential(nn.LayerNorm(WIDTH, elementwise_affine=False), linear)


def preferences(rows: Sequence[int]) -> PreferenceBatch:
    return pack_preferences([PAIRS[r] for r in rows], rows)


def backward(output: LossOutput) -> Tensor:
    loss = output.loss.total / output.loss.count
    loss.backward()
    return loss.detach()


def ours_by_their_names(model: Transformer, of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
    taken = {name: of(parameter) for name, parameter in model.named_parameters()}
    return unfuse(model.config, {name: x for name, x in taken.items() if x is not None})


def same_gradients(model: Transformer, peer: nn.Module) -> None:
    mine = ours_by_their_names(model, lambda p: p.grad)
    theirs = {name: p.grad for name, p in peer.named_parameters() if name in mine}
    assert len(theirs) == len(mine) >= 20
    for name, grad in theirs.items():
        assert grad.norm() > 1e-6, name
        error = (mine[name] - grad).norm() / grad.norm()
        assert error < 1e-4, (name, float(error))


# ------------------------------------------------------------------ one batch
def test_trl_collates_the_tokens_and_labels_that_accord_packs(tmp_path: Path) -> None:
    batch = first_batch(make_trainer("sft", causal(0), tmp_path, 8))
    packed = pack_supervised(EXAMPLES)
    assert len(packed) < int(batch["attention_mask"].sum())  # the opening once
    for row, labels, example in zip(batch["input_ids"], batch["labels"], EXAMPLES, strict=True):
        assert tuple(row[: len(example)].tolist()) == example.tokens
        assert ((labels >= 0)[: len(example)].tolist(), (labels >= 0).sum()) == (
            list(example.loss_mask),
            sum(example.loss_mask),
        )
    batch = first_batch(make_trainer("dpo", causal(0), tmp_path, 8, causal(1)))
    masks = batch["completion_mask"].bool()
    for row, mask, pair, reply in zip(
        batch["input_ids"], masks, PAIRS * 2, [p.chosen for p in PAIRS] + [p.rejected for p in PAIRS], strict=True
    ):
        assert tuple(row[mask].tolist()) == reply
        assert tuple(row[: len(pair.prompt)].tolist()) == pair.prompt


def test_sft_loss_and_gradients_are_trls(tmp_path: Path) -> None:
    peer = causal(2)
    ours = opened(peer, tmp_path)
    found = backward(cross_entropy(ours, pack_supervised(EXAMPLES)))
    torch.testing.assert_close(found, their_loss(make_trainer("sft", peer, tmp_path, 8)), rtol=0, atol=1e-5)
    assert found > 1
    same_gradients(ours, peer)


@pytest.mark.parametrize("heads", [linear_head, normalized_head])
def test_reward_loss_and_gradients_are_trls(
    tmp_path: Path, heads: Callable[[], tuple[RewardMLP | ScalarHead, nn.Module]]
) -> None:
    trunk = causal(3)
    head, score = heads()
    peer = classifier(trunk, score)
    model = RewardModel(opened(trunk, tmp_path), head, "last")
    found = backward(reward_model.objective(model, preferences(range(8)), "bradley_terry"))
    torch.testing.assert_close(found, their_loss(make_trainer("reward", peer, tmp_path, 8)), rtol=0, atol=1e-5)
    assert abs(found - 0.6931) > 0.05
    assert isinstance(model.backbone, Transformer)
    same_gradients(model.backbone, peer)
    (mine,) = (p.grad for p in head.parameters() if p.ndim == 2)
    (theirs,) = (p.grad for p in score.parameters() if p.ndim == 2)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_centered_reward_loss_is_trls(tmp_path: Path) -> None:
    trunk = causal(4)
    head, score = linear_head()
    batch = preferences(range(8))
    model = RewardModel(opened(trunk, tmp_path), head, "last")
    chosen, rejected = model.raw(batch.packed, torch.cat([batch.chosen, batch.rejected])).chunk(2)
    trainer = make_trainer("reward", classifier(trunk, score), tmp_path, 8, center_rewards_coefficient=0.3)
    found = bradley_terry_loss(chosen, rejected, batch.margins, center=0.3).loss.value()
    assert found == pytest.approx(float(their_loss(trainer)), abs=1e-5)
    assert found - bradley_terry_loss(chosen, rejected, batch.margins).loss.value() > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_loss_and_gradients_are_trls(tmp_path: Path, smoothing: float) -> None:
    """TRL smooths labels in "robust" only, ((1 - s) L - s L') / (1 - 2s) with L' the loss of the swapped pair; with
    its plain loss L, the conservative loss (1 - s) L + s L' is 2 (1 - s) L - (1 - 2s) robust."""
    peer, reference = causal(5), causal(6)
    ours, ref = opened(peer, tmp_path / "policy"), opened(reference, tmp_path / "reference")
    logprobs = dpo.reference_logprobs(FrozenReference(ref), PAIRS, torch.device("cpu"), "float32", 3)
    output = dpo.objective(ours, preferences(range(8)), logprobs, BETA, smoothing)
    found = backward(output)
    weights = {"loss_type": ["sigmoid", "robust"], "loss_weights": [2 * (1 - smoothing), 2 * smoothing - 1]}
    options = {"label_smoothing": smoothing, **weights} if smoothing else {}
    trainer = make_trainer("dpo", peer, tmp_path, 8, reference, **options)
    torch.testing.assert_close(found, their_loss(trainer), rtol=0, atol=1e-5)
    assert abs(found - 0.6931) > 0.05
    same_gradients(ours, peer)
    said = trainer._metrics["train"]
    for mine, theirs in (
        ("margin", "rewards/margins"),
        ("chosen_reward", "rewards/chosen"),
        ("accuracy", "rewards/accuracies"),
        ("rejected_logprob", "logps/rejected"),
    ):
        assert output.metrics[mine].value() == pytest.approx(said[theirs][0], abs=1e-4), mine


# ------------------------------------------------------------------ updates
@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_four_updates_end_at_the_same_weights(kind: str, tmp_path: Path) -> None:
    """Two epochs of two steps of two micro-batches of two rows: accumulation over unequal counts of labels, gradient
    clipping that binds, a linear schedule and AdamW, in accord's Updater and in the Trainer."""
    trunk, reference = causal(7), causal(8)
    model = opened(trunk, tmp_path / "policy")
    head, score = normalized_head()
    scored = RewardModel(model, head, "last")
    logprobs = dpo.reference_logprobs(
        FrozenReference(opened(reference, tmp_path / "reference")), PAIRS, torch.device("cpu"), "float32", 8
    )
    steps = [[rows, [r + 2 for r in rows]] for rows in ([0, 1], [4, 5])] * 2
    settings = Optimizer(schedule="linear", adam_eps=1e-5, **STEP)
    trained = scored if kind == "reward" else model
    updater = Updater([(trained.parameters(), STEP["learning_rate"])], settings, len(steps))
    objective: Callable[[Sequence[int]], LossOutput] = {
        "sft": lambda rows: cross_entropy(model, pack_supervised([EXAMPLES[r] for r in rows])),
        "reward": lambda rows: reward_model.objective(scored, preferences(rows), "bradley_terry"),
        "dpo": lambda rows: dpo.objective(model, preferences(rows), logprobs, BETA, 0.0),
    }[kind]
    before = ours_by_their_names(model, lambda p: p.detach().clone())
    metrics = [updater.step(step, objective) for step in steps]
    assert min(m["grad_norm"] for m in metrics) > STEP["max_grad_norm"]

    peer = classifier(trunk, score) if kind == "reward" else trunk
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 2}
    trainer = make_trainer(kind, peer, tmp_path, 2, reference, **options)
    trainer.train()
    assert trainer.state.global_step == 4

    mine = ours_by_their_names(model, lambda p: p.detach())
    theirs = {name: p.detach() for name, p in peer.named_parameters() if name in mine}
    assert len(theirs) >= 20
    for name, weight in theirs.items():
        assert (weight - before[name]).abs().max() > 1e-3, name
        torch.testing.assert_close(mine[name], weight, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
