"""SFT, reward model and DPO training steps beside TRL's trainers: the same rows, weights, AdamW and clipping, turn about.

    python benchmarks/losses_trl.py                  three rounds of everything, some ten minutes
    python benchmarks/losses_trl.py --only dpo       one comparison
    python benchmarks/losses_trl.py --tuned          both sides with glibc's allocator told to keep its memory

A tiny Llama (width 128, 4 layers, vocabulary 4096) in float32 on one thread.  Rows of random words: prompts of 20 to
200 tokens (median 60), replies of 10 to 300 (median 90), lognormal, cut at 256 in all.  Each run is a process of its
own that takes ``STEPS`` steps after one that is not counted; CPU seconds are the process's own.  The losses of all
steps must agree to 1e-4 relative, or the comparison counts as failed.  Needs the extra oracle.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PAD, EOS, VOCAB, WIDTH, CUT, STEPS, RATE = 0, 1, 4096, 128, 256, 4, 1e-3
BATCH = {"sft": 32, "reward": 8, "dpo": 8}
AT_LEAST = {"sft": (2.3, 1.6), "reward": (1.4, 1.4), "dpo": (3.0, 2.0)}  # as installed, allocator tuned
AIM = {"sft": (4.0, 3.0), "reward": (2.5, 2.5), "dpo": (5.0, 3.5)}
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"
}  # fmt: skip
Rows = list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def rows_of(kind: str) -> Rows:
    """(prompt, chosen, rejected) tokens; replies end in the end token."""
    chance = np.random.default_rng(0)

    def words(median: float, low: int, high: int) -> tuple[int, ...]:
        length = int(np.clip(np.exp(np.log(median) + 0.6 * chance.standard_normal()), low, high))
        return tuple(int(i) for i in chance.integers(3, VOCAB, length))

    rows: Rows = []
    for _ in range(BATCH[kind] * (STEPS + 1)):
        prompt, replies = words(60, 20, 200), [words(90, 10, 300) for _ in range(2)]
        room = CUT - len(prompt) - 1
        chosen, rejected = ((*reply[:room], EOS) for reply in replies)
        rows.append((prompt, chosen, rejected))
    return rows


def weights(folder: str) -> Any:
    """The model that both sides start from, written once as a Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    ends = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_key_value_heads=4, **sizes, **ends))
    model.save_pretrained(folder)
    return model


def score_weights() -> Any:
    import torch

    return torch.nn.init.normal_(torch.empty(1, WIDTH), std=WIDTH**-0.5, generator=torch.Generator().manual_seed(1))


class Clock:
    """CPU seconds between the end of the first step and the end of the last."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.began = self.spent = 0.0

    def step(self, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == 1:
            self.began = time.process_time()
        self.spent = time.process_time() - self.began

    def result(self) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"losses": self.losses, "cpu": self.spent / STEPS, "rss_mb": peak}


# ------------------------------------------------------------------ TRL
def run_trl(kind: str, folder: str) -> dict[str, Any]:
    import torch
    import trl
    from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback

    torch.set_num_threads(1)
    model: Any = weights(folder)
    trainer, config = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
    }[kind]
    if kind == "reward":
        peer = LlamaForSequenceClassification(LlamaConfig(**{**model.config.to_dict(), "num_labels": 1}))
        peer.model.load_state_dict(model.model.state_dict())
        with torch.no_grad():
            peer.score.weight.copy_(score_weights())
        model = peer
    clock = Clock()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                clock.step(logs["loss"])

    arguments = config(
        output_dir=folder, per_device_train_batch_size=BATCH[kind], max_length=None, num_train_epochs=1, use_cpu=True,
        bf16=False, gradient_checkpointing=False, train_sampling_strategy="sequential", optim="adamw_torch",
        learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=1.0, weight_decay=0.0, report_to="none",
        disable_tqdm=True, save_strategy="no", logging_steps=1, **({"beta": 0.1} if kind == "dpo" else {}),
    )  # fmt: skip
    reference = {"ref_model": weights(folder)} if kind == "dpo" else {}
    made = trainer(
        model=model,
        args=arguments,
        train_dataset=_texts(kind),
        processing_class=_tokenizer(),
        callbacks=[Watch()],
        **reference,
    )
    made.train()
    return clock.result()


def _texts(kind: str) -> Any:
    from datasets import Dataset

    def words(ids: Sequence[int]) -> str:
        return "".join("</s> " if i == EOS else f"w{i} " for i in ids)

    rows = []
    for prompt, chosen, rejected in rows_of(kind):
        row = {"prompt": words(prompt)}
        if kind == "sft":
            rows.append({**row, "completion": words(chosen).strip()})
        else:
            rows.append({**row, "chosen": words(chosen).strip(), "rejected": words(rejected).strip()})
    return Dataset.from_list(rows)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"<pad>": PAD, "</s>": EOS, "<unk>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    plain = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


# ------------------------------------------------------------------ accord
def run_accord(kind: str, folder: str) -> dict[str, Any]:
    import torch

    from accord.models.transformer import Transformer
    from accord.settings import Optimiser
    from accord.training.updater import Updater

    torch.set_num_threads(1)
    weights(folder)
    model = Transformer.open(folder)
    rows = rows_of(kind)
    size = BATCH[kind]
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    pack, objective, trained = _ours(kind, model, folder)
    updater = Updater([(trained, RATE)], Optimiser(learning_rate=RATE, max_grad_norm=1.0), len(parts))
    clock = Clock()
    for part in parts:
        clock.step(updater.step([pack(part)], objective)["loss"])
    return clock.result()


def _ours(kind: str, model: Any, folder: str) -> tuple[Callable[[Rows], Any], Callable[[Any], Any], list[Any]]:
    import torch

    from accord.data.packing import pack_preferences, pack_supervised
    from accord.data.preferences import PreferencePair
    from accord.data.supervised import SupervisedExample
    from accord.models.reward import RewardMLP, RewardModel
    from accord.models.transformer import Transformer
    from accord.training import dpo, reward_model
    from accord.training.cross_entropy import cross_entropy

    def supervised(rows: Rows) -> Any:
        masks = [(False,) * len(p) + (True,) * len(c) for p, c, _ in rows]
        return pack_supervised([SupervisedExample((*p, *c), m) for (p, c, _), m in zip(rows, masks, strict=True)])

    def pairs(rows: Rows) -> Any:
        return pack_preferences([PreferencePair(p, c, r) for p, c, r in rows], range(len(rows)))

    if kind == "sft":
        return supervised, lambda batch: cross_entropy(model, batch), list(model.parameters())
    if kind == "reward":
        head = RewardMLP(WIDTH, num_layers=1)
        with torch.no_grad():
            head.layers[0].weight.copy_(score_weights())
            head.layers[0].bias.zero_()
        whole = RewardModel(model, head, "last")
        return pairs, lambda batch: reward_model.objective(whole, batch, "bradley_terry"), list(whole.parameters())
    reference = Transformer.open(folder).requires_grad_(False)

    def loss(batch: Any) -> Any:
        with torch.no_grad():  # in every step, as TRL does without precomputing
            known = torch.stack(dpo.pair_logprobs(reference, batch), 1)
        return dpo.objective(model, batch, known, 0.1, 0.0)

    return pairs, loss, list(model.parameters())


# ------------------------------------------------------------------ side by side
def one(who: str, kind: str, tuned: bool) -> dict[str, Any]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **threads, **quiet, **(KEEP_MEMORY if tuned else {})}
    command = [sys.executable, __file__, "--one", who, "--only", kind]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{who}, {kind}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(kind: str, rounds: int, tuned: bool) -> dict[str, Any]:
    runs = [(one("accord", kind, tuned), one("trl", kind, tuned)) for _ in range(rounds)]
    ratios = [theirs["cpu"] / ours["cpu"] for ours, theirs in runs]
    apart = max(
        abs(a - b) / abs(b) for ours, theirs in runs for a, b in zip(ours["losses"], theirs["losses"], strict=True)
    )
    ratio, least = statistics.median(ratios), AT_LEAST[kind][tuned]
    middle = {who: statistics.median(run[i]["cpu"] for run in runs) for i, who in enumerate(("accord", "trl"))}
    memory = {who: statistics.median(run[i]["rss_mb"] for run in runs) for i, who in enumerate(("accord", "trl"))}
    return {
        "row": f"{kind}_tiny_b{BATCH[kind]}_fp32" + ("_tuned" if tuned else ""), "ratio": ratio, "low": min(ratios),
        "high": max(ratios), "cpu_s_per_step": middle, "rss_mb": memory, "loss_apart": apart, "at_least": least,
        "aim": AIM[kind][tuned], "met": ratio >= least and apart < 1e-4,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(BATCH), help="one comparison")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--tuned", action="store_true", help="both sides with an allocator that keeps its memory")
    parser.add_argument("--one", choices=["accord", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps((run_accord if options.one == "accord" else run_trl)(options.only, folder)))
        return 0
    lines = [compare(kind, options.rounds, options.tuned) for kind in ([options.only] if options.only else BATCH)]
    for line in lines:
        cpu, rss = line["cpu_s_per_step"], line["rss_mb"]
        print(
            f"{line['row']:26} {line['ratio']:4.1f} x ({line['low']:.1f} to {line['high']:.1f}; at least"
            f" {line['at_least']}, aim {line['aim']})  CPU s a step {cpu['accord']:.2f} / {cpu['trl']:.2f}"
            f"  MB {rss['accord']:.0f} / {rss['trl']:.0f}  losses apart by {line['loss_apart']:.1e}"
        )
        print(json.dumps(line))
    print(f"{sum(line['met'] for line in lines)} of {len(lines)} rows met")
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
