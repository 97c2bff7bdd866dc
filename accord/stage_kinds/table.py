"""One row for each stage kind.  Settings and torch are not imported here, so that ``--help`` is immediate."""

from __future__ import annotations

from typing import Any

from accord.stage_kinds.kind import Reference, Sort, StageKind

_MODEL = Reference("model.base_model", "model")
_PAIRS = (Reference("data.train", "preferences"), Reference("data.heldout", "heldout_preferences"))
_HEADS = "configs/ppo_train.yaml"


def _heldout_texts(sort: Sort) -> Reference:
    """Held-out rows of a stage on texts: those that it names, or those of the stage or folder that it is trained on."""
    return Reference("data.heldout", sort, unless="data.heldout_fraction", beside="data.train")


def _after_sft(config: Any) -> str:
    """The specified configs for the small world's model, which they name; for others what reads pairs of one's own."""
    if config.model.base_model in ("mamba", "base") and config.model.d_model == 128 and config.name in ("", "sft"):
        return "accord reward --config configs/reward_model.yaml, or accord dpo --config configs/dpo_train.yaml"
    words = "model.base_model={folder} data.train=PAIRS"
    return f"accord reward {words}, or accord dpo {words}, with your file of preferences for PAIRS"


def _after_reward(config: Any) -> str:
    """A reward model on features belongs to PPO on heads, which has its own config."""
    return "accord ppo reward.source={folder}" if config.model.kind == "language" else f"accord ppo --config {_HEADS}"


def _after_ppo(config: Any) -> str:
    """Chat for a language model; curves otherwise."""
    if config.model.policy == "language":
        return "accord chat {folder}"
    return "accord plot {logs}, or open its curves in {logs}/{name}.svg"


def _after_compare(config: Any) -> str:
    """A judged reward model can be trained against."""
    return "accord chat MODEL, with the one you prefer" if config.what == "models" else "accord ppo reward.source=MODEL"


_KINDS = (
    StageKind(
        name="demo",
        help="write the small world's data",
        settings_path="accord.config.data:DemoConfig",
        function_path="accord.stage_kinds.demo:run_demo",
        version=2,
        next_step="accord base",
    ),
    StageKind(
        name="pretrained",
        help="import a pretrained model: a folder, a .gguf file, a Hugging Face id",
        settings_path="accord.config.data:PretrainedConfig",
        function_path="accord.stage_kinds.pretrained:run_pretrained",
        version=1,
        next_step="accord chat {folder}",
        files=("source",),
    ),
    StageKind(
        name="base",
        help="pretrain a small base model",
        settings_path="accord.config.sft:BaseConfig",
        function_path="accord.algorithms.base:train",
        version=3,
        next_step="accord sft --config configs/rlhf_sft.yaml",
        references=(Reference("data.train", "base"), _heldout_texts("heldout_base")),
    ),
    StageKind(
        name="sft",
        help="supervised fine-tuning",
        settings_path="accord.config.sft:SFTConfig",
        function_path="accord.algorithms.sft:train",
        version=3,
        next_step=_after_sft,
        references=(_MODEL, Reference("data.train", "sft"), _heldout_texts("heldout_sft")),
    ),
    StageKind(
        name="pairs",
        help="sample replies and label preferences with an annotator",
        settings_path="accord.config.data:PairsConfig",
        function_path="accord.stage_kinds.pairs:run_pairs",
        version=6,
        next_step="accord reward data.train={folder}",
        references=(_MODEL, Reference("prompts", "prompts")),
        functions=("annotator",),
    ),
    StageKind(
        name="sample",
        help="sample replies of one or several models",
        settings_path="accord.config.feedback:SampleConfig",
        function_path="accord.stage_kinds.sample:run_sample",
        version=2,
        next_step="accord judge samples={folder}",
        references=(
            Reference("model.base_model", "model", unless="models"),
            Reference("models.*", "model"),
            Reference("prompts", "prompts"),
        ),
    ),
    StageKind(
        name="judge",
        help="have sampled replies judged in pairs: by scores, a reward model, people, another model",
        settings_path="accord.config.feedback:JudgeConfig",
        function_path="accord.stage_kinds.judge:run_judge",
        version=1,
        next_step="accord reward data.train={folder}",
        references=(Reference("samples", "samples"), Reference("judge", "reward", unless="openai.url")),
    ),
    StageKind(
        name="reward",
        help="train a reward model on preferences",
        settings_path="accord.config.reward:REWARD",
        function_path="accord.algorithms.reward_model:train",
        version=5,
        next_step=_after_reward,
        references=(_MODEL, *_PAIRS),
    ),
    StageKind(
        name="ppo",
        help="PPO on a whole language model, heads on a frozen one, or a Gymnasium task",
        settings_path="accord.config.ppo:PPO",
        function_path="accord.stage_kinds.ppo:run_ppo",
        version=6,
        next_step=_after_ppo,
        references=(
            _MODEL,
            Reference("reference", "model"),
            Reference("reward.source", "reward", unless="reward.terms"),
            Reference("prompts", "prompts"),
            Reference("reward.terms.*.source", "reward"),
            Reference("rollout.replay", "ledger"),
        ),
    ),
    StageKind(
        name="dpo",
        help="direct preference optimization of the policy",
        settings_path="accord.config.preference:DPOConfig",
        function_path="accord.algorithms.dpo:train",
        version=4,
        next_step="accord chat {folder}",
        references=(_MODEL, *_PAIRS),
    ),
    StageKind(
        name="compare",
        help="compare models on held-out prompts, or judge a reward model alone on pairs",
        settings_path="accord.config.evaluation:COMPARE",
        function_path="accord.stage_kinds.compare:run_compare",
        version=4,
        next_step=_after_compare,
        references=(
            Reference("reference", "model"),
            Reference("base", "model"),
            Reference("reward_model", "reward"),
            Reference("pairs", "heldout_preferences", only_with="reward_model"),
            Reference("prompts", "heldout_prompts"),
            Reference("models.*", "model"),
        ),
        functions=("gold",),
    ),
    StageKind(
        name="fuse",
        help="merge models: linear average, SLERP, task vectors, interpolation",
        settings_path="accord.config.fusion:FuseConfig",
        function_path="accord.stage_kinds.fuse:run_fuse",
        version=2,
        next_step="accord compare models.sft=sft models.fused={folder}; reward models: accord ppo reward.source={folder}",
        references=(
            Reference("base", "model"),
            Reference("calibrate", "preferences"),
            Reference("models.*.model", "model"),
        ),
    ),
)

STAGE_KINDS = {kind.name: kind for kind in _KINDS}
