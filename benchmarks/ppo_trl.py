"""PPO on a language model against TRL 1.12 (the last with PPO): the same weights, prompts and settings, alternating runs.

    python benchmarks/ppo_trl.py                    tiny three rounds, SmolLM2 two; some twenty minutes
    python benchmarks/ppo_trl.py --quick            the tiny model, three rounds of one update
    python benchmarks/ppo_trl.py --only smollm2     one model

One update is a rollout of ``batch`` replies, scored by reference, critic and a tiny reward model, then ``epochs``
passes over it, one AdamW step each; KL 0.05 on the tokens' rewards, gamma 1, lambda 0.95, clips 0.2, value weight 0.1,
no clipping of the gradient.  Both sides have a separate value model; "shared_trunk" is accord with the value head on
the policy's trunk instead, a smaller model and therefore a separate row.  Prompts: lognormal, 20 to 200 tokens,
median 60; TRL pads them on the left.

tiny: Llama of width 128, 4 layers, 4 heads, vocabulary 4096, tied; up to 64 new tokens.  Its end token has a constant
probability, so that replies end after some 32 tokens.  smollm2: the real 135M weights (extra smollm2) with an end token that
they never generate, so that all replies have 48 tokens; bfloat16 where the processor multiplies in it and float32 elsewhere.

The losses are checked first: TRL makes one update on replies of full length, and accord processes the same
replies; losses, scores, KL and the updated weights must agree.  (If a reply ends early TRL assigns its score one step
after the end token and trains the value of that step too; accord assigns it at the end token.  TRL whitens advantages
by n - 1, accord by n, which is undone for the check.)  CPU seconds are those of each process, on one thread (more: wall
seconds); the ratio is of seconds per token of prompts and replies, since sampled replies differ in length.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import now, run, threads

PAD, EOS, UNK, VOCAB, WIDTH, RATE = 0, 1, 2, 4096, 128, 1e-7
NEVER_WRITTEN = "<empty_output>"
"""SmolLM2's end token here, so that all replies have full length; its weights are unchanged."""
END_CHANCE = 1 / 43
"""Of the end token at every step: 32 of at most 64 tokens on average."""


@dataclass(frozen=True)
class Case:
    batch: int
    new_tokens: int
    epochs: int
    warm: int  # warm-up updates
    counted: int
    more: int  # as many more of ours, so that the mean length of replies is known better


CASES = {"tiny": Case(32, 64, 4, 1, 2, 2), "smollm2": Case(8, 48, 2, 1, 1, 0)}
QUICK = Case(32, 64, 4, 1, 1, 1)
BARS = {
    ("tiny", "float32", "separate"): (1.8, 4.0), ("tiny", "bfloat16", "separate"): (2.5, 4.0),
    ("tiny", "float32", "shared"): (3.0, 5.0), ("tiny", "bfloat16", "shared"): (3.0, 5.0),
    ("smollm2", "float32", "separate"): (1.8, 3.0), ("smollm2", "bfloat16", "separate"): (1.8, 3.0),
    ("smollm2", "float32", "shared"): (3.0, 5.0), ("smollm2", "bfloat16", "shared"): (3.0, 5.0),
}  # fmt: skip
APART: dict[str, Any] = {"losses": {"tiny": 1e-4, "smollm2": 1e-3}, "weights": 1e-2, "length": 0.1}
"""What the sides may differ by: losses of an update (relative; the policy's, which is near 0, absolute: advantages have
deviation 1; SmolLM2's values are read after a first step of Adam, which turns rounding into signs), the
way the weights went, the mean length of replies (or three standard errors, where those are more)."""


# ------------------------------------------------------------------ what both sides read
def prepare(folder: Path, kind: str) -> None:
    """policy/ and reward_trl/ for transformers, reward/ for accord, prompts.jsonl and their tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from transformers.utils import logging

    from accord.data.prompts import load_prompts
    from accord.data.tokenizer import Tokenizer
    from accord.models.gguf import open_gguf
    from accord.models.reward import RewardMLP, RewardModel
    from accord.models.transformer import Transformer

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    if kind == "tiny":
        ending(tiny(VOCAB)).save_pretrained(folder / "policy")
        Tokenizer(_words(), {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}).save(folder / "policy")
        prompts = [{"prompt": " ".join(f"w{i}" for i in row)} for row in random_prompts()]
    else:
        from accord.data.sentiment import smollm2_gguf

        tokenizer = Tokenizer.from_gguf(smollm2_gguf())
        tokenizer.chat_template = str(tokenizer.chat_template).replace("<|im_end|>", NEVER_WRITTEN)
        open_gguf(smollm2_gguf()).save(folder / "policy")
        tokenizer.save(folder / "policy")
        Tokenizer.open(folder / "policy").save(folder / "policy")  # names the end token that the template writes
        texts = (Path(__file__).parents[1] / "configs/recipes/smollm2_prompts.jsonl").read_text().splitlines()
        prompts = [json.loads(line) for line in texts[: CASES[kind].batch]]
    tokenizer = Tokenizer.open(folder / "policy")
    tokenizer.save(folder / "policy")  # now with the end token that the template writes
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    found = load_prompts(folder / "prompts.jsonl", tokenizer, 512)
    assert len(found) == CASES[kind].batch
    (folder / "prompts.json").write_text(json.dumps([list(p) for p in found.prompts]))

    torch.manual_seed(1)
    vocab = Transformer.open(folder / "policy").vocab_size
    trunk = tiny(vocab)
    trunk.save_pretrained(folder / "reward_lm")
    judge = LlamaForSequenceClassification(LlamaConfig(**{**trunk.config.to_dict(), "num_labels": 1}))
    judge.model.load_state_dict(trunk.model.state_dict())
    torch.nn.init.normal_(judge.score.weight, std=WIDTH**-0.5)
    judge.save_pretrained(folder / "reward_trl")
    head = RewardMLP(WIDTH, num_layers=1)
    with torch.no_grad():
        head.layers[0].weight.copy_(judge.score.weight)
        head.layers[0].bias.zero_()
    RewardModel(Transformer.open(folder / "reward_lm"), head, "last").save(str(folder / "reward"))
    tokenizer.save(folder / "reward")


def random_prompts() -> list[list[int]]:
    chance = np.random.default_rng(0)
    lengths = np.clip(np.exp(np.log(60) + 0.6 * chance.standard_normal(CASES["tiny"].batch)), 20, 200).astype(int)
    return [chance.integers(3, VOCAB, n).tolist() for n in lengths]


def tiny(vocab: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": WIDTH, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    ends = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, num_key_value_heads=4, **sizes, **ends))


def ending(model: Any) -> Any:
    """The model with an end token of probability ``END_CHANCE`` and a pad token of probability 0.

    One dimension of the residual stream is the same at every token; the rows of the two tokens in the (tied) head
    read it.
    """
    import torch

    table = model.model.embed_tokens.weight
    with torch.no_grad():
        table[:, 0] = 0.2
        ids = torch.tensor(random_prompts()[0])[None]
        hidden = model.model(input_ids=ids).last_hidden_state[0]
        constant = float(hidden[:, 0].mean())
        others = torch.logsumexp(hidden @ table.T, -1) - 0.2 * constant  # nats above a row that reads nothing else
        table[[EOS, PAD]] = 0.0
        table[EOS, 0] = 0.2 + (np.log(END_CHANCE / (1 - END_CHANCE)) + float(others.mean())) / constant
        table[PAD, 0] = 0.2 - 30 / constant
    return model


def _words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = {"<pad>": PAD, "</s>": EOS, "<unk>": UNK, **{f"w{i}": i for i in range(3, VOCAB)}}
    plain = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return plain


class Clock:
    """CPU seconds at the start, after each update (``at``) and within it (``parts``: TRL's replies are written, our
    rollout is written and scored); the mean over the counted updates."""

    def __init__(self, case: Case) -> None:
        self.case, self.at, self.parts, self.lengths = case, [0.0], [], []  # type: ignore[var-annotated]

    def begin(self) -> None:
        self.at = [now()]

    def update(self) -> None:
        self.at.append(now())

    def result(self) -> dict[str, Any]:
        spent = np.diff(self.at)[self.case.warm :]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
        counted = self.lengths[self.case.warm :]
        parts = [p - a for p, a in zip(self.parts, self.at, strict=False)][self.case.warm :]
        return {
            "cpu": float(np.mean(spent)), "rollout": float(np.mean(parts)), "rss_mb": peak,
            "length": float(np.mean(counted)), "lengths": self.lengths,
        }  # fmt: skip


# ------------------------------------------------------------------ TRL
def run_trl(kind: str, folder: Path, precision: str, check: bool, seed: int) -> dict[str, Any]:
    """Its trainer; with ``check`` one update on replies of full length, which are saved with its results."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )  # fmt: skip
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    case, clock, kept = CASES[kind], Clock(CASES[kind]), {}
    torch.set_num_threads(threads())
    torch.manual_seed(seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "policy", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy") for _ in range(2))
    critic = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    torch.nn.init.normal_(critic.score.weight, std=0.02) if check else torch.nn.init.zeros_(critic.score.weight)
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    head = critic.score.weight.detach().clone()
    write = ppo_trainer.batch_generation

    def watched(*arguments: Any) -> Any:
        whole, logits = write(*arguments)
        kept["whole"] = whole
        replies = whole[:, arguments[1].shape[1] :]
        ended = (replies == tokenizer.eos_token_id).int()
        kept["lengths"] = (ended.cumsum(1) - ended == 0).sum(1).float().mean().item()
        clock.parts.append(now())
        return whole, logits

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            kept["logs"] = logs
            clock.lengths.append(kept["lengths"])
            clock.update()

    ppo_trainer.batch_generation = watched
    prompts = json.loads((folder / "prompts.json").read_text())
    updates = 1 if check else case.warm + case.counted
    arguments = PPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=case.batch, gradient_accumulation_steps=1,
        num_mini_batches=1, num_ppo_epochs=case.epochs, total_episodes=case.batch * updates,
        local_rollout_forward_batch_size=case.batch, response_length=case.new_tokens, temperature=1.0,
        stop_token=None if check else "eos", learning_rate=RATE * (1000 if check else 1), lr_scheduler_type="constant",
        adam_epsilon=1e-5, weight_decay=0.0, kl_coef=0.05, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, gamma=1.0,
        lam=0.95, bf16=precision == "bfloat16", gradient_checkpointing=False, use_cpu=True, num_sample_generations=0,
        logging_steps=1, seed=seed, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=arguments, processing_class=tokenizer, model=policy, ref_model=reference, value_model=critic,
        reward_model=AutoModelForSequenceClassification.from_pretrained(folder / "reward_trl"),
        train_dataset=Dataset.from_dict({"input_ids": prompts}), callbacks=[Watch()],
    )  # fmt: skip
    clock.begin()
    trainer.train()
    if check:
        moved = {name: x for name, x in policy.state_dict().items() if name != "lm_head.weight"}
        left = {"whole": kept["whole"], "head": head, "moved": moved, "logs": kept["logs"]}
        torch.save(left, folder / "check.pt")
        return {"replies": case.batch}
    return clock.result()


# ------------------------------------------------------------------ accord
def settings(kind: str, folder: Path, precision: str, critic: str, check: bool = False) -> Any:
    from accord.config.on_policy import LanguagePPOConfig

    case = CASES[kind]
    return LanguagePPOConfig(
        model={"policy": "language", "base_model": str(folder / "policy"), "critic": critic, "max_length": 1024},
        training={
            "batch_size": case.batch, "replies": case.batch, "num_epochs": case.epochs, "gamma": 1.0, "vf_coef": 0.1,
            "iterations": case.warm + case.counted + case.more, "learning_rate": RATE * (1000 if check else 1),
            "max_grad_norm": 1e9,
        },
        reward={"source": str(folder / "reward")}, sampling={"max_new_tokens": case.new_tokens},
        prompts=str(folder / "prompts.jsonl"), precision=precision, kl={"beta": 0.05}, threads=threads(), device="cpu",
    )  # fmt: skip


def run_accord(kind: str, folder: Path, precision: str, critic: str, seed: int) -> dict[str, Any]:
    """The unchanged stage: ``accord ppo``."""
    import torch

    from accord.algorithms import ppo
    from accord.runtime.allocator import keep_memory
    from accord.runtime.run import Run, StageIdentity

    keep_memory()  # as every stage does
    torch.set_num_threads(threads())
    case, clock = CASES[kind], Clock(CASES[kind])

    class Watched(Run):
        def begin(self, total_steps: int, step: int = 0) -> None:
            super().begin(total_steps, step)
            clock.begin()

        def record(self, metrics: Any, prefix: str = "") -> None:
            super().record(metrics, prefix)
            if prefix == "rollout/":
                clock.parts.append(now())
                clock.lengths.append(metrics["length"])

        def tick(self, metrics: Any) -> None:
            super().tick(metrics)
            if self.step % case.epochs == 0:
                clock.update()

    with tempfile.TemporaryDirectory() as place:
        identity = StageIdentity("ppo", Path(place), Path(place), seed)
        with Watched(identity, log_every=1, save_every=10**6) as run:
            ppo.train(settings(kind, folder, precision, critic), run)
    return clock.result()


def check_accord(kind: str, folder: Path) -> dict[str, Any]:
    """TRL's replies through our pass: how far losses, scores, KL and the updated weights are from TRL's results."""
    import torch

    from accord.algorithms.ppo import ppo_loss, prepare, score_texts
    from accord.data.tokenizer import Tokenizer
    from accord.models.language import LanguageActorCritic, reply_logprobs
    from accord.models.transformer import Transformer, unfuse
    from accord.rollout.collect import read_replies
    from accord.rollout.score import Replies, open_reward
    from accord.training.updater import Updater
    from accord.types import Generation, Rollout

    torch.set_num_threads(1)
    case, config = CASES[kind], settings(kind, folder, "float32", "separate", True)
    theirs = torch.load(folder / "check.pt", weights_only=True)
    tokenizer = Tokenizer.open(folder / "policy")
    whole, logs = theirs["whole"], theirs["logs"]
    start = whole.shape[1] - case.new_tokens
    prompts = tuple(tuple(int(i) for i in row[:start] if int(i) != tokenizer.pad_id) for row in whole)
    responses = whole[:, start:].contiguous()
    mask = torch.ones_like(responses, dtype=torch.bool)
    moving = Transformer.open(folder / "policy")
    policy = LanguageActorCritic(moving, "separate")
    policy.value_head.linear.weight.data.copy_(theirs["head"])
    policy.value_head.linear.bias.requires_grad_(False)  # TRL's head has none
    blank = Generation(prompts, responses, mask, torch.zeros(mask.shape), torch.ones(len(prompts), dtype=torch.bool))
    known = read_replies(blank, len(prompts), lambda packed, at: reply_logprobs(policy.policy, packed, at))
    generation = replace(blank, logprobs=known)
    replies = Replies([""] * len(prompts), [""] * len(prompts), prompts, responses.tolist())
    scores = open_reward(str(folder / "reward"), tokenizer, "cpu", "reward")(replies)["reward_model"]
    rows, versions = torch.arange(len(prompts)), torch.zeros_like(responses)
    batch, _ = prepare(Rollout(generation, rows, versions, known, scores, {}), policy, 0.05, config)
    n = mask.sum()
    batch.advantages.mul_(((n - 1) / n).sqrt())
    groups = [(policy.policy_parameters(), config.training.learning_rate)]
    groups.append((policy.critic_parameters(), config.training.learning_rate))
    updater = Updater(groups, config.training, case.epochs)
    objective = ppo_loss(partial(score_texts, policy, 1.0), config.training, config.training.clip_range)
    steps = [updater.step([batch], objective) for _ in range(case.epochs)]
    found = {
        "loss/policy_avg": np.mean([s["policy_loss"] for s in steps]), "objective/scores": float(scores.mean()),
        "loss/value_avg": np.mean([s["value_loss"] for s in steps]),
        "objective/entropy": float(-known.sum(1).mean()),
    }  # fmt: skip
    apart = {k: abs(v - logs[k]) / (1.0 if k == "loss/policy_avg" else abs(logs[k])) for k, v in found.items()}
    began = Transformer.open(folder / "policy")
    before, after = (unfuse(began.config, {k: v.detach() for k, v in m.state_dict().items()}) for m in (began, moving))
    off = sum(float((after[k] - theirs["moved"][k]).square().sum()) for k in before)
    way = sum(float((theirs["moved"][k] - before[k]).square().sum()) for k in before)
    apart["weights"] = (off / way) ** 0.5
    return {"apart": {k: float(v) for k, v in apart.items()}, "trl": {k: float(logs[k]) for k in found}}


# ------------------------------------------------------------------ side by side
def one(
    who: str, kind: str, folder: Path, precision: str, critic: str = "separate", seed: int = 0, count: int = 1
) -> dict[str, Any]:
    """A run in a separate process; ``who``: accord, trl, trl-check or accord-check."""
    import peers

    python = str(peers.python("trl112", peers.TRL_PPO)) if who.startswith("trl") else sys.executable
    command = [__file__, "--one", who, "--only", kind, "--folder", str(folder)]
    command += ["--precision", precision, "--critic", critic, "--seed", str(seed)]
    command += ["--quick"] if CASES[kind] is QUICK else []
    return run(command, count, False, python)


def rows(kind: str, precision: str, rounds: int, folder: Path, count: int) -> list[dict[str, Any]]:
    """The rows of one model at one precision."""
    one("trl-check", kind, folder, "float32")
    checked = one("accord-check", kind, folder, "float32")
    allowed = APART["losses"][kind]
    agree = all(off <= (APART["weights"] if key == "weights" else allowed) for key, off in checked["apart"].items())
    runs = []
    for seed in range(rounds):
        ours = {
            critic: one("accord", kind, folder, precision, critic, seed, count) for critic in ("separate", "shared")
        }
        runs.append({**ours, "trl": one("trl", kind, folder, precision, seed=seed, count=count)})
    lines = []
    asked = np.mean([len(p) for p in json.loads((folder / "prompts.json").read_text())])
    numbers = ("cpu", "rollout", "rss_mb", "length")
    middle = {who: {k: statistics.median(run[who][k] for run in runs) for k in numbers} for who in runs[0]}
    lengths = {who: [x for run in runs for x in run[who]["lengths"]] for who in runs[0]}
    for critic in ("separate", "shared"):
        ratios = [_per_token(run["trl"], asked) / _per_token(run[critic], asked) for run in runs]
        least, aim = BARS[kind, precision, critic]
        ratio, near = statistics.median(ratios), alike(lengths[critic], lengths["trl"], CASES[kind])
        name = f"ppo_{kind}_b{CASES[kind].batch}_{'fp32' if precision == 'float32' else 'bf16'}"
        name += ("_shared_trunk" if critic == "shared" else "") + (f"_threads{count}" if count > 1 else "")
        lines.append({
            "row": name, "ratio": ratio, "low": min(ratios),
            "high": max(ratios), "at_least": least, "aim": aim, "met": ratio >= least and agree and near,
            "details": {"accord": middle[critic], "trl": middle["trl"], "apart": checked["apart"]},
        })  # fmt: skip
    return lines


def _per_token(run: dict[str, Any], asked: float) -> float:
    """CPU seconds of an update per token of prompts and replies, up to a factor that both sides share."""
    return float(run["cpu"] / (asked + run["length"]))


def alike(ours: list[float], theirs: list[float], case: Case) -> bool:
    """Whether mean lengths of replies, one for each rollout, agree within sampling noise."""
    spread = case.new_tokens / 3  # of one reply: it ends at a constant rate or at the budget
    chance = 3 * spread * (1 / (len(ours) * case.batch) + 1 / (len(theirs) * case.batch)) ** 0.5
    apart, mean = abs(np.mean(ours) - np.mean(theirs)), np.mean(theirs)
    return bool(apart <= max(APART["length"] * mean, chance))


def precisions(kind: str, fast: bool) -> list[str]:
    if kind == "smollm2":
        return ["bfloat16" if fast else "float32"]
    return ["float32", "bfloat16"] if fast else ["float32"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES), help="one model")
    parser.add_argument("--rounds", type=int, default=0, help="runs of each side (tiny 3, SmolLM2 2)")
    parser.add_argument("--quick", action="store_true", help="the tiny model, one update")
    parser.add_argument("--threads", type=int, default=1, help="threads; above one the ratio is of wall seconds")
    parser.add_argument("--one", choices=["accord", "accord-check", "trl", "trl-check"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--critic", default="separate", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        CASES["tiny"] = QUICK
    if options.one:
        print(json.dumps(child(options)))
        return 0
    kinds = [options.only] if options.only else ["tiny"] if options.quick else list(CASES)
    from accord.runtime.device import has_bfloat16_instructions

    fast = has_bfloat16_instructions()
    if not fast:
        print("this processor has no bfloat16 instructions: float32 only")
    lines = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as place:
            prepare(Path(place), kind)
            for precision in precisions(kind, fast):
                rounds = options.rounds or (3 if kind == "tiny" else 2)
                lines += rows(kind, precision, rounds, Path(place), options.threads)
                for line in lines[-2:]:
                    show(line)
    print(f"{sum(line['met'] for line in lines)} of {len(lines)} rows met")
    return 0 if all(line["met"] for line in lines) else 1


def child(options: argparse.Namespace) -> dict[str, Any]:
    if options.one == "accord":
        return run_accord(options.only, options.folder, options.precision, options.critic, options.seed)
    if options.one == "accord-check":
        return check_accord(options.only, options.folder)
    return run_trl(options.only, options.folder, options.precision, options.one == "trl-check", options.seed)


def show(line: dict[str, Any]) -> None:
    ours, trl = line["details"]["accord"], line["details"]["trl"]
    print(
        f"{line['row']:36} {line['ratio']:4.1f} x ({line['low']:.1f} to {line['high']:.1f}; at least {line['at_least']},"
        f" aim {line['aim']})  s an update {ours['cpu']:.2f} / {trl['cpu']:.2f}  MB {ours['rss_mb']:.0f} /"
        f" {trl['rss_mb']:.0f}  reply {ours['length']:.0f} / {trl['length']:.0f} tokens"
        f"  losses apart by {max(v for k, v in line['details']['apart'].items() if k != 'weights'):.0e}"
    )
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
