"""The Python API besides the stages: ``accord.run`` runs a pipeline, ``accord.load`` opens a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import UserError
from accord.runtime.seeds import derive

if TYPE_CHECKING:
    from accord.data.rows import Prompt
    from accord.data.tokenizer import Tokenizer
    from accord.models.backbone import Backbone
    from accord.models.reward import RewardModel


def run(
    pipeline: str | Path,
    overrides: Sequence[str] = (),
    jobs: int = 1,
    *,
    only: Sequence[str] = (),
    force: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs the stages of a pipeline's YAML that are not up to date; returns the content of its ``results.json``.

    ``overrides`` are as on the command line (``ppo.kl.beta=0.1``), ``jobs`` is the number of parallel stages, ``only`` and
    ``force`` name stages.  Raises UserError before anything has run, Failed where a stage failed (after all stages that
    do not need it), and Interrupted.
    """
    from accord.pipeline.orchestrator import Options, run_pipeline

    return run_pipeline(pipeline, list(overrides), Options(tuple(only), tuple(force), jobs))


def load(model: str | Path, device: str = "cpu") -> LoadedModel | LoadedReward:
    """Opens a model: a stage's folder, a model folder, a .gguf file, or a name in the registry (``ppo_lm@champion``).

    A reward model has ``score``, a language model ``generate``.  Raises UserError where there is no such model.
    """
    from accord.models.open import open_backbone
    from accord.models.reward import RewardModel, is_reward_model
    from accord.runtime.device import resolve_device
    from accord.training.artifact import model_folder, open_tokenizer

    folder = model_folder(str(model))
    target = resolve_device(device)
    tokenizer = open_tokenizer(str(folder))
    if is_reward_model(folder):
        reward = RewardModel.open(folder)
        reward.to(target).eval().requires_grad_(False)
        return LoadedReward(folder, reward, tokenizer)
    backbone = open_backbone(folder).to(target).requires_grad_(False).eval()
    return LoadedModel(folder, backbone, tokenizer)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A language model and its tokenizer."""

    folder: Path
    backbone: Backbone
    tokenizer: Tokenizer

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str:
        """A reply to a text or to messages (``[{"role": "user", "content": …}, …]``), determined by the seed.

        ``temperature`` 0 is greedy.  Raises UserError for messages where the model has no chat template.
        """
        from accord.data.chat import prompt_ids
        from accord.rollout.generate import Decoding, stream

        tokenizer = self.tokenizer
        decoding = Decoding(max_new_tokens, tokenizer.eos_id, tokenizer.pad_id, temperature, top_p)
        tokens = stream(self.backbone, prompt_ids(tokenizer, prompt), decoding, derive(seed, "generate"))
        return tokenizer.decode(list(tokens))


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """A reward model and its tokenizer."""

    folder: Path
    model: RewardModel
    tokenizer: Tokenizer

    @property
    def backbone(self) -> Backbone:
        return self.model.backbone

    def score(self, prompt: Prompt, reply: str) -> float:
        """The normalized score of a reply."""
        return self.scores([prompt], [reply])[0]

    def scores(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> list[float]:
        """The normalized score of each reply.  Raises UserError where the numbers of prompts and replies differ."""
        from accord.rollout.score import ModelReward, Replies

        if len(prompts) != len(replies):
            raise UserError(f"{len(prompts)} prompts and {len(replies)} replies: give one reply for each prompt.")
        scores = ModelReward("score", self.model, self.tokenizer, same_tokens=False)(Replies(prompts, replies, [], []))
        return [float(score) for score in scores["score"]]
