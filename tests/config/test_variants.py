"""Which of several typed configs a config is, and that none holds what another one ignores."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.cli import main
from accord.config.control import ControlPPOConfig
from accord.config.load import load
from accord.config.on_policy import HeadsPPOConfig, LanguagePPOConfig
from accord.config.ppo import PPO
from accord.config.reward import REWARD, FeaturesRewardConfig, LanguageRewardConfig
from accord.config.section import known_keys
from accord.config.variants import Variants
from accord.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("settings", "overrides", "cls"),
    [
        (PPO, [], LanguagePPOConfig),
        (PPO, ["model.base_model=sft", "reward.source=reward"], LanguagePPOConfig),
        (PPO, ["model.policy=language"], LanguagePPOConfig),
        (PPO, ["model.obs_dim=128"], HeadsPPOConfig),
        (PPO, ["model.action_dim=50"], HeadsPPOConfig),
        (PPO, ["model.policy=heads"], HeadsPPOConfig),
        (PPO, ["environment=CartPole-v1"], ControlPPOConfig),
        (PPO, ["model.policy=control", "environment=CartPole-v1"], ControlPPOConfig),
        (REWARD, [], LanguageRewardConfig),
        (REWARD, ["model.kind=language"], LanguageRewardConfig),
        (REWARD, ["model.input_dim=128"], FeaturesRewardConfig),
        (REWARD, ["model.kind=features"], FeaturesRewardConfig),
    ],
)
def test_what_a_config_holds_decides(settings: Variants, overrides: list[str], cls: type) -> None:
    assert type(load(settings, None, overrides)) is cls


def test_an_empty_sign_decides_nothing() -> None:
    """And it is no setting of a language model."""
    with pytest.raises(UserError, match=r"this config is model\.policy=language, the default"):
        load(PPO, None, ["environment=''"])


def test_the_specified_configs_mean_what_they_meant() -> None:
    ppo, reward = load(PPO, CONFIGS / "ppo_train.yaml"), load(REWARD, CONFIGS / "reward_model.yaml")
    assert type(ppo) is HeadsPPOConfig
    assert (ppo.training.total_timesteps, ppo.training.n_steps, ppo.training.gamma) == (500, 32, 0.99)
    assert type(reward) is FeaturesRewardConfig
    assert (reward.model.input_dim, reward.model.num_layers, reward.model.objective) == (128, 2, "auto")


def test_a_language_model_has_the_defaults_that_suit_it() -> None:
    assert PPO().training.gamma == 1.0
    assert load(PPO, None, ["model.obs_dim=32"]).training.gamma == 0.99
    assert load(PPO, None, ["environment=CartPole-v1"]).training.gamma == 0.99


@pytest.mark.parametrize(
    ("settings", "overrides", "words"),
    [
        (
            PPO,
            ["model.obs_dim=32", "training.iterations=3"],
            "override 'training.iterations=3': training.iterations is a setting of model.policy=language; this config is"
            " model.policy=heads because it has model.obs_dim.",
        ),
        (
            PPO,
            ["training.total_timesteps=3"],
            "override 'training.total_timesteps=3': training.total_timesteps is a setting of model.policy=heads and"
            " control; this config is model.policy=language, the default.",
        ),
        (
            PPO,
            ["model.policy=language", "model.obs_dim=3", "model.action_dim=3"],
            "override 'model.obs_dim=3': model.obs_dim and model.action_dim are settings of model.policy=heads; this"
            " config is model.policy=language.",
        ),
        (
            PPO,
            ["environment=CartPole-v1", "kl.beta=0.1"],
            "override 'kl.beta=0.1': kl.beta is a setting of model.policy=language and heads; this config is"
            " model.policy=control because it has environment.",
        ),
        (
            PPO,
            ["environment=CartPole-v1", "model.obs_dim=4"],
            "override 'environment=CartPole-v1': environment is a setting of model.policy=control, and model.obs_dim is"
            " one of model.policy=heads; leave one of them out.",
        ),
        (
            PPO,
            ["model.policy=head"],
            "override 'model.policy=head': model.policy: expected 'language', 'heads' or 'control', found 'head'.",
        ),
        (
            PPO,
            ["environment=CartPole-v1", "precision=bfloat16"],
            "override 'precision=bfloat16': precision is a setting of model.policy=language; this config is"
            " model.policy=control because it has environment.",
        ),
        (
            PPO,
            ["model.obs_dim=4", "precision=bfloat16"],
            "override 'precision=bfloat16': precision is a setting of model.policy=language; this config is"
            " model.policy=heads because it has model.obs_dim.",
        ),
        (PPO, ["model.max_prompt_length=9"], "override 'model.max_prompt_length=9': unknown key"),
        (PPO, ["model.policy=[heads]"], "override 'model.policy=[heads]': model.policy: expected 'language'"),
        (PPO, ["model=3"], "override 'model=3': 'model' is a section; set one of its keys, such as model.base_model."),
        (
            PPO,
            ["model.policy=control"],
            "the config: model.policy=control needs environment, a Gymnasium id such as CartPole-v1",
        ),
        (
            PPO,
            ["training.schedule=kl_adaptive"],
            "override 'training.schedule=kl_adaptive': training: training.schedule=kl_adaptive needs training.target_kl",
        ),
        (
            PPO,
            ["training.clip_rnage=1"],
            "override 'training.clip_rnage=1': unknown key 'training.clip_rnage'; did you",
        ),
        (
            REWARD,
            ["model.input_dim=8", "training.probe_decay=0.1"],
            "override 'training.probe_decay=0.1': training.probe_decay is a setting of model.kind=language; this config"
            " is model.kind=features because it has model.input_dim.",
        ),
        (
            REWARD,
            ["model.hidden_dim=8"],
            "override 'model.hidden_dim=8': model.hidden_dim is a setting of model.kind=features; this config is"
            " model.kind=language, the default.",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings: Variants, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(settings, None, overrides)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_retired_settings_are_accepted_at_their_defaults() -> None:
    """As in a config.yaml of an earlier version, which wrote out every default."""
    assert load(PPO, None, ["model.obs_dim=4", "precision=float32", "model.max_prompt_length=0"]) == load(
        PPO, None, ["model.obs_dim=4"]
    )
    assert "precision" not in load(PPO, None, ["environment=CartPole-v1", "precision=float32"]).model_dump()
    assert load(PPO, None, ["model.max_prompt_length=0"]) == PPO()


def test_a_config_for_heads_is_refused_for_a_language_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence names the file's line, and the command ends with 2."""
    path = CONFIGS / "ppo_train.yaml"
    assert main(["ppo", "--config", str(path), "model.policy=language"]) == 2
    assert capsys.readouterr().err == (
        f"accord: {path} line 4: model.obs_dim, model.action_dim, model.hidden_dim, training.total_timesteps and"
        " training.n_steps are settings of model.policy=heads; this config is model.policy=language.\n"
    )


def test_the_old_name_of_a_policy_works_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["environment=CartPole-v1", "training.gamma=0.98"]
    old = load(PPO, None, ["model.policy=vector", *given])
    assert capsys.readouterr().err == (
        "accord: note: override 'model.policy=vector': model.policy=vector is now model.policy=control; the old name"
        " works until 0.3.\n"
    )
    assert old == load(PPO, None, given)
    assert old.model_dump()["model"]["policy"] == "control"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("settings", [PPO, REWARD])
def test_what_is_shown_says_which_variant_it_is(settings: Variants) -> None:
    """A dumped config is read as the same class, whatever it holds."""
    group, key = settings.key.split(".")
    for name in settings.classes:
        given = {group: {key: name}, **({"environment": "CartPole-v1"} if name == "control" else {})}
        config = settings(**given)
        assert config.model_dump()[group][key] == name
        assert settings(**config.model_dump()) == config


@pytest.mark.parametrize("settings", [PPO, REWARD])
def test_signs_belong_to_their_variant_alone(settings: Variants) -> None:
    for key, name in settings.signs.items():
        owners = [variant for variant, cls in settings.classes.items() if key in set(known_keys(cls))]
        assert owners == [name]
