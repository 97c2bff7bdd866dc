"""The Python API besides the stages: ``accord.run`` runs a pipeline, ``accord.load`` opens a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from accord.data.turns import Turns
from accord.errors import UserError
from accord.runtime.seeds import derive

if TYPE_CHECKING:
    from accord.data.rows import Message, Prompt
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
    do not need it), Waiting where one waits for people (likewise), and Interrupted.
    """
    from accord.pipeline.orchestrator import Options, run_pipeline
    from accord.runtime.output import lasting_output

    _require(isinstance(pipeline, (str, Path)), "run: the pipeline is a YAML file's path", pipeline)
    for name, words in (("overrides", overrides), ("only", only), ("force", force)):
        is_list = isinstance(words, Sequence) and not isinstance(words, str)
        example = "'seed=1'" if name == "overrides" else "'sft'"
        _require(
            is_list and all(isinstance(w, str) for w in words), f"run: {name} is a list of texts, as [{example}]", words
        )
    _require(
        isinstance(jobs, int) and not isinstance(jobs, bool) and jobs > 0, "run: jobs is a whole number from 1", jobs
    )
    with lasting_output():
        return run_pipeline(pipeline, list(overrides), Options(tuple(only), tuple(force), jobs))


def _require(good: bool, words: str, found: object) -> None:
    """Raises UserError with what was expected and what was found."""
    if not good:
        text = repr(found)
        raise UserError(f"{words}; found {text if len(text) <= 80 else type(found).__name__}.")


def load(model: str | Path, device: str = "cpu") -> LoadedModel | LoadedReward:
    """Opens a model: a stage's folder, a model folder, a .gguf file, or a name in the registry (``ppo_lm@champion``).

    A reward model has ``score``, a language model ``generate``.  Raises UserError where there is no such model.
    """
    from accord.models.reward import RewardModel, is_reward_model
    from accord.runtime.device import resolve_device
    from accord.training.artifact import model_folder, open_policy, open_tokenizer, require_ids

    _require(isinstance(model, (str, Path)) and str(model) != "", "load: a model is a folder, a file or a name", model)
    _require(isinstance(device, str), "load: device is auto, cpu, cuda, cuda:1 or mps", device)
    folder = model_folder(str(model))
    target = resolve_device(device)
    tokenizer = open_tokenizer(str(folder))
    if is_reward_model(folder):
        reward = RewardModel.open(folder)
        require_ids(str(folder), reward.backbone, tokenizer)
        reward.to(target).eval().requires_grad_(False)
        return LoadedReward(folder, reward, tokenizer)
    backbone = open_policy(str(folder), tokenizer, target).requires_grad_(False)
    return LoadedModel(folder, backbone, tokenizer)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A language model and its tokenizer."""

    folder: Path
    backbone: Backbone
    tokenizer: Tokenizer

    @overload
    def generate(self, prompt: str | Sequence[Message], *settings: Any, **more: Any) -> str: ...

    @overload
    def generate(self, prompt: Sequence[Prompt], *settings: Any, **more: Any) -> list[str]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str | list[str]:
        """A reply to a text or to messages (``[{"role": "user", "content": …}, …]``), determined by the seed; for a list of
        prompts a list of replies, each the same as alone.  A prompt that occurs again gets another sample.

        ``temperature`` 0 is greedy.  Raises UserError for what is no prompt, for settings out of bounds, and for messages
        where the model has no chat template.
        """
        from accord.config.reply import reply_settings
        from accord.data.chat import prompt_to_continue
        from accord.data.reply_text import reply_text
        from accord.rollout.generate import Decoding, stream
        from accord.training.artifact import require_fit

        values = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        settings = reply_settings("generate", **values)
        several = _is_list(prompt) and not all(isinstance(item, Mapping) for item in prompt)
        prompts = [
            _prompt(p, f"generate: prompt {i}" if several else "generate: the prompt")
            for i, p in enumerate(prompt if several else [prompt])
        ]
        tokenizer, used, replies = self.tokenizer, Counter[str](), []
        decoding = Decoding(
            settings.max_new_tokens, tokenizer.eos_id, tokenizer.pad_id, settings.temperature, settings.top_p
        )
        for each in prompts:
            key = derive(settings.seed, "generate", used[repr(each)])
            used[repr(each)] += 1
            tokens = prompt_to_continue(tokenizer, each)
            require_fit(str(self.folder), self.backbone, tokenizer, len(tokens) + settings.max_new_tokens)
            replies.append(reply_text(tokenizer, tokens, list(stream(self.backbone, tokens, decoding, key))))
        return replies if several else replies[0]

    def score(self, prompt: Prompt, reply: str) -> float:
        """Raises UserError: only a reward model scores."""
        raise UserError(f"{self.folder}: a language model, which writes replies and scores none; load a reward model.")

    def scores(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> list[float]:
        """Raises UserError: only a reward model scores."""
        return [self.score(prompt, "") for prompt in prompts or [""]]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair is no character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _prompt(value: Any, what: str) -> Prompt:
    """A prompt: a text, or messages.  Raises UserError where it is neither."""
    if isinstance(value, str):
        _require(_is_unicode(value), f"{what} is a text without lone surrogates", value)
        return value
    form = '[{"role": "user", "content": "…"}]'
    _require(_is_list(value) and len(value) > 0, f"{what} is a text, or messages as {form}", value)
    for message in value:
        good = isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        _require(good, f"{what} is a text, or messages as {form}", message)
        _require(_is_unicode(message["content"]), f"{what} is messages without lone surrogates", message)
    return value if isinstance(value, Turns) else list(value)


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

    def generate(self, prompt: Prompt | Sequence[Prompt], *settings: Any, **more: Any) -> str:
        """Raises UserError: only a language model writes replies."""
        raise UserError(
            f"{self.folder}: is a reward model, which scores replies and writes none; give a language model."
        )

    def scores(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> list[float]:
        """The normalized score of each reply.

        Raises UserError for what is no prompt or reply, and where the numbers of prompts and replies differ.
        """
        from accord.rollout.score import ModelReward, Replies

        for name, given in (("prompts", prompts), ("replies", replies)):
            _require(_is_list(given), f"scores: {name} is a list; for one reply use score(prompt, reply)", given)
        for i, reply in enumerate(replies):
            _require(isinstance(reply, str) and _is_unicode(reply), f"scores: reply {i} is a text", reply)
        prompts = [_prompt(prompt, f"scores: prompt {i}") for i, prompt in enumerate(prompts)]
        if not prompts and not replies:
            return []
        if len(prompts) != len(replies):
            raise UserError(f"{len(prompts)} prompts and {len(replies)} replies: give one reply for each prompt.")
        scores = ModelReward("score", self.model, self.tokenizer, same_tokens=False)(Replies(prompts, replies, [], []))
        return [float(score) for score in scores["score"]]
