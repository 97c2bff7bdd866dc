"""The settings that --help shows."""

from __future__ import annotations

import pytest

from accord.cli import main
from accord.config.help import settings_help
from accord.config.section import Section
from accord.config.variants import Variants
from accord.stage_kinds.table import STAGE_KINDS


def settings_of(cls: type[Section]) -> list[str]:
    """``  key=default`` of every setting of a class."""
    found = []
    for name, field in cls.model_fields.items():
        value = field.get_default(call_default_factory=True)
        inner = type(value).model_fields if isinstance(value, Section) else {}
        for key, default in [(f"{name}.{k}", getattr(value, k)) for k in inner] or [(name, value)]:
            found.append(f"  {key}={chr(39) * 2 if default == '' else 'null' if default is None else default}")
    return found


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_help_lists_every_setting_with_its_default(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([kind, "--help"]) == 0
    shown = capsys.readouterr().out
    settings = STAGE_KINDS[kind].settings
    classes = [*settings.classes.values()] if isinstance(settings, Variants) else [settings]
    for cls in classes:
        assert str(cls.__doc__) in shown
        for line in settings_of(cls):
            assert line in shown
    assert max(map(len, settings_help(settings))) <= 120


def test_variants_show_what_they_share_once_and_their_own_under_their_names() -> None:
    common, language, heads, control = "\n".join(settings_help(STAGE_KINDS["ppo"].settings)).split("settings of ")
    assert language.startswith("model.policy=language, the default:")
    assert heads.startswith("model.policy=heads, selected by model.obs_dim or model.action_dim:")
    assert control.startswith("model.policy=control, selected by environment:")
    for line, places in {
        "  seed=0": "common",
        "  training.clip_range=0.2": "common",
        "  training.gamma=1.0": "language",
        "  training.gamma=0.99": "heads control",
        "  training.iterations=30": "language",
        "  training.total_timesteps=500": "heads control",
        "  kl.beta=0.05": "language heads",
        "  kl.placement=reward": "language",
        "  environment=''": "control",
    }.items():
        texts = {"common": common, "language": language, "heads": heads, "control": control}
        assert [name for name, text in texts.items() if line in text] == places.split(), line
