"""One side of ``losses_trl.py`` in its own process: some training steps, then one line of JSON."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

PAD, EOS = 0, 1
Rows = list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Size:
    vocab: int
    width: int
    cut: int  # tokens of prompt and reply together
    batch: dict[str, int]
    steps: int  # that are timed, after one warm-up step
    rate: float


SIZES = {
    "tiny": Size(4096, 128, 256, {"sft": 32, "reward": 8, "dpo": 8}, 4, 1e-3),
    "smollm2": Size(49152, 576, 512, {"sft": 8, "reward": 4, "dpo": 4}, 1, 1e-5),
}


def rows_of(kind: str, size: Size) -> Rows:
    """(prompt, chosen, rejected) tokens; replies end in the end token."""
    chance = np.random.default_rng(0)

    def words(median: float, low: int, high: int) -> tuple[int, ...]:
        length = int(np.clip(np.exp(np.log(median) + 0.6 * chance.standard_normal()), low, high))
        return tuple(int(i) for i in chance.integers(3, size.vocab, length))

    rows: Rows = []
    for _ in range(size.batch[kind] * (size.steps + 1)):
        prompt, replies = words(60, 20, 200), [words(90, 10, 300) for _ in range(2)]
        room = size.cut - len(prompt) - 1
        chosen, rejected = ((*reply[:room], EOS) for reply in replies)
        rows.append((prompt, chosen, rejected))
    return rows


def write_weights(name: str, folder: str) -> None:
    """The model that both sides start from, as a Hugging Face folder: a new tiny Llama, or SmolLM2-135M-Instruct."""
    import torch

    if name == "smollm2":
        from accord.data.sentiment import smollm2_gguf
        from accord.models.gguf import open_gguf

        open_gguf(smollm2_gguf()).save(folder)
        return
    from transformers import LlamaConfig, LlamaForCausalLM

    size = SIZES[name]
    torch.manual_seed(0)
    shape = {"hidden_size": size.width, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    ends = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(vocab_size=size.vocab, num_key_value_heads=4, **shape, **ends)).save_pretrained(folder)


def score_weights(width: int) -> Any:
    import torch

    return torch.nn.init.normal_(torch.empty(1, width), std=width**-0.5, generator=torch.Generator().manual_seed(1))


class Clock:
    """Seconds between the end of the first step and the end of the last."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.cpu = self.wall = 0.0

    def step(self, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == 1:
            self.began = time.process_time(), time.perf_counter()
        self.cpu, self.wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]

    def result(self) -> dict[str, Any]:
        """Losses, CPU and wall seconds per step, and the process's peak of resident memory in MB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        steps = len(self.losses) - 1
        return {"losses": self.losses, "cpu_s": self.cpu / steps, "wall_s": self.wall / steps, "rss_mb": peak}


# ------------------------------------------------------------------ TRL
def run_trl(kind: str, size: Size, folder: str, bf16: bool) -> dict[str, Any]:
    import torch
    import trl
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback

    trainer, config = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
    }[kind]
    if kind == "reward":
        model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1)
        with torch.no_grad():
            model.score.weight.copy_(score_weights(size.width))
    else:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference = {"ref_model": LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)} if kind == "dpo" else {}
    clock = Clock()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                clock.step(logs["loss"])

    with tempfile.TemporaryDirectory() as output:
        arguments = config(
            output_dir=output, per_device_train_batch_size=size.batch[kind], max_length=None, num_train_epochs=1,
            use_cpu=True, bf16=bf16, gradient_checkpointing=False, train_sampling_strategy="sequential",
            optim="adamw_torch", learning_rate=size.rate, lr_scheduler_type="constant", max_grad_norm=1.0,
            weight_decay=0.0, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
            **({"beta": 0.1} if kind == "dpo" else {}),
        )  # fmt: skip
        made = trainer(
            model=model,
            args=arguments,
            train_dataset=_texts(kind, size),
            processing_class=_tokenizer(size.vocab),
            callbacks=[Watch()],
            **reference,
        )
        made.train()
    return clock.result()


def _texts(kind: str, size: Size) -> Any:
    from datasets import Dataset

    def words(ids: Sequence[int]) -> str:
        return "".join("</s> " if i == EOS else f"w{i} " for i in ids)

    rows = []
    for prompt, chosen, rejected in rows_of(kind, size):
        row = {"prompt": words(prompt)}
        if kind == "sft":
            rows.append({**row, "completion": words(chosen).strip()})
        else:
            rows.append({**row, "chosen": words(chosen).strip(), "rejected": words(rejected).strip()})
    return Dataset.from_list(rows)


def _tokenizer(vocab: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"<pad>": PAD, "</s>": EOS, "<unk>": 2, **{f"w{i}": i for i in range(3, vocab)}}
    plain = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


# ------------------------------------------------------------------ accord
def run_accord(kind: str, size: Size, folder: str, bf16: bool) -> dict[str, Any]:
    from torch.utils.flop_counter import FlopCounterMode

    from accord.config.common import Optimizer
    from accord.models.transformer import Transformer
    from accord.runtime.allocator import keep_memory
    from accord.training.updater import Updater

    keep_memory()  # as every stage does
    model = Transformer.open(folder)
    rows, batch = rows_of(kind, size), size.batch[kind]
    parts = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    pack, objective, trained = _ours(kind, model, folder)
    precision = "bfloat16" if bf16 else "float32"
    options = Optimizer(learning_rate=size.rate, max_grad_norm=1.0)
    updater = Updater([(trained, size.rate)], options, len(parts), precision)
    clock, batches = Clock(), [pack(part) for part in parts]
    with FlopCounterMode(display=False) as counted:
        clock.step(updater.step([batches[0]], objective)["loss"])
    for one in batches[1:]:
        clock.step(updater.step([one], objective)["loss"])
    tokens = [len(b if kind == "sft" else b.packed) for b in batches]
    operations = counted.get_total_flops() / tokens[0] * sum(tokens[1:]) / len(tokens[1:])  # of a step, by its tokens
    return {**clock.result(), "gflop": operations / 1e9}


def _ours(kind: str, model: Any, folder: str) -> tuple[Callable[[Rows], Any], Callable[[Any], Any], list[Any]]:
    import torch

    from accord.algorithms import dpo, reward_model
    from accord.data.packing import pack_preferences, pack_supervised
    from accord.data.preferences import PreferencePair
    from accord.data.supervised import SupervisedExample
    from accord.models.reference import FrozenReference
    from accord.models.reward import RewardMLP, RewardModel
    from accord.models.transformer import Transformer
    from accord.training.cross_entropy import cross_entropy

    def supervised(rows: Rows) -> Any:
        masks = [(False,) * len(p) + (True,) * len(c) for p, c, _ in rows]
        return pack_supervised([SupervisedExample((*p, *c), m) for (p, c, _), m in zip(rows, masks, strict=True)])

    def pairs(rows: Rows) -> Any:
        return pack_preferences([PreferencePair(p, c, r) for p, c, r in rows], range(len(rows)))

    if kind == "sft":
        return supervised, lambda batch: cross_entropy(model, batch), list(model.parameters())
    if kind == "reward":
        head = RewardMLP(model.width, num_layers=1)
        with torch.no_grad():
            head.layers[0].weight.copy_(score_weights(model.width))
            head.layers[0].bias.zero_()
        whole = RewardModel(model, head, "last")
        return pairs, lambda batch: reward_model.objective(whole, batch, "bradley_terry"), list(whole.parameters())
    reference = Transformer.open(folder).requires_grad_(False)

    def loss(batch: Any) -> Any:
        with torch.no_grad():  # in every step, as TRL does without precomputing
            known = torch.stack(dpo.pair_logprobs(FrozenReference(reference).logprobs, batch), 1)
        return dpo.objective(model, batch, known, 0.1, 0.0)

    return pairs, loss, list(model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["accord", "trl", "write"], required=True, help="write: the weights alone")
    parser.add_argument("--kind", choices=["sft", "reward", "dpo"], default="sft")
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--folder", required=True, help="where the weights lie")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--steps", type=int, default=0, help="steps that count; 0: as many as the size says")
    options = parser.parse_args()
    if options.side == "write":
        Path(options.folder).mkdir(parents=True, exist_ok=True)
        write_weights(options.size, options.folder)
        print("{}")
        return
    import torch

    torch.set_num_threads(options.threads)
    side = run_accord if options.side == "accord" else run_trl
    size = SIZES[options.size]
    size = replace(size, steps=options.steps or size.steps)
    print(json.dumps(side(options.kind, size, options.folder, options.bf16)))


if __name__ == "__main__":
    main()
