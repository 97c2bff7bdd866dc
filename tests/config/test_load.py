"""Configs: what is read, and that every mistake names file, line and key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from accord.config.evaluation import CompareConfig
from accord.config.load import build, load, parse_override, put, to_yaml
from accord.config.on_policy import LanguagePPOConfig
from accord.config.ppo import PPO
from accord.config.section import Section
from accord.config.sft import BaseConfig, SFTConfig
from accord.errors import UserError
from accord.stage_kinds.table import STAGE_KINDS

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return made


def refusal(cls: Any, path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(cls, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path))


# ------------------------------------------------------------------ what is read
def test_a_file_is_read_over_the_defaults(write: Write) -> None:
    config = load(SFTConfig, write("# mine\nseed: 3\ntraining:\n  learning_rate: 1e-4\n  batch_size: 8\n"))
    assert (config.seed, config.training.batch_size) == (3, 8)
    assert config.training.learning_rate == 1e-4  # a text to YAML 1.1, and a number all the same
    assert isinstance(config.training.learning_rate, float)
    assert config.training.num_epochs == 1
    assert config.model == SFTConfig().model


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but words\n", "{}\n", "---\n"])
@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_an_empty_file_holds_the_defaults(write: Write, kind: str, text: str) -> None:
    assert (
        load(STAGE_KINDS[kind].settings, write(text))
        == load(STAGE_KINDS[kind].settings, None)
        == STAGE_KINDS[kind].settings()
    )


def test_a_section_given_in_part_keeps_the_defaults_of_its_stage(write: Write) -> None:
    """If the class's own defaults were used instead, naming Adam's epsilon would change the learning rate, and
    naming a length the model."""
    for kind, cls in ((name, row.settings) for name, row in STAGE_KINDS.items()):
        training = getattr(cls(), "training", None)
        if training is not None:
            got = load(cls, write("training: { adam_eps: 1.0e-7 }\n"))
            assert got == cls(training=training.model_copy(update={"adam_eps": 1e-7})), kind  # type: ignore[call-arg]
    assert load(BaseConfig, None, ["training.num_epochs=2"]).training.learning_rate == 3e-3
    for kind in ("dpo", "pairs"):
        got = load(STAGE_KINDS[kind].settings, None, ["model.max_length=99"])
        assert got.model.base_model == "sft"  # type: ignore[attr-defined]
        assert got.model.max_length == 99  # type: ignore[attr-defined]


def test_sections_within_sections_keep_theirs() -> None:
    class Inner(Section):
        x: int = 0
        y: int = 0

    class Middle(Section):
        inner: Inner = Inner(x=1)
        z: int = 0

    class Outer(Section):
        middle: Middle = Middle(inner=Inner(x=2, y=3), z=4)

    got = load(Outer, None, ["middle.inner.y=9"])
    assert got == Outer(middle=Middle(inner=Inner(x=2, y=9), z=4))
    assert load(Middle, None, ["inner.y=9"]).inner == Inner(x=1, y=9)


def test_overrides_beat_the_file_and_later_ones_the_earlier(write: Write) -> None:
    path = write("training: { batch_size: 8, learning_rate: 0.5 }\n")
    config = load(SFTConfig, path, ["training.batch_size=2", "seed=1", "training.batch_size=16"])
    assert (config.training.batch_size, config.training.learning_rate, config.seed) == (16, 0.5, 1)
    assert load(SFTConfig, None, ["training.learning_rate=3e-5"]).training.learning_rate == 3e-5
    assert load(PPO, None, ["reward.missing_eos_penalty=null"]).reward.missing_eos_penalty is None
    assert load(CompareConfig, None, ["models={sft: a, mine: b}"]).models == {"sft": "a", "mine": "b"}
    assert load(SFTConfig, None, ["model.base_model=a=b"]).model.base_model == "a=b"


@given(st.floats(0, 10))
def test_any_number_comes_through_an_override(x: float) -> None:
    assert load(SFTConfig, None, [f"training.learning_rate={x!r}"]).training.learning_rate == x


CHANGED = {
    "demo": ["base_rows=7"],
    "pretrained": ["source=my/folder"],
    "base": ["model.base_model=transformer", "training.warmup_steps=0"],
    "sft": ["training.learning_rate=3e-5", "data.train=ä b.jsonl"],
    "pairs": ["temperatures=[0.7, 1.3]", "noise=0"],
    "sample": ["temperatures=[0.7, 1.3]", "models={one: a, two: b}"],
    "judge": ["judge=feedback://demo", "people.votes=40"],
    "reward": ["training.head_learning_rate=1e-3", "model.layers=3"],
    "ppo": ["reward.terms=[{source: a}, {source: 'm:f', weight: -2}]", "kl.placement=loss", "kl.estimator=k2"],
    "dpo": ["training.label_smoothing=0.1", "name='yes'"],
    "compare": ["models={sft: 'on', dpo: '1e3'}", "redraw=false"],
    "fuse": ["models={a: 'on', b: {model: '1e3', weight: -2}}", "normalize=false"],
}


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_what_is_shown_loads_as_the_same_config(write: Write, kind: str) -> None:
    for overrides in ([], CHANGED[kind]):
        config = load(STAGE_KINDS[kind].settings, None, overrides)
        assert load(STAGE_KINDS[kind].settings, write(to_yaml(config))) == config
    assert config != STAGE_KINDS[kind].settings()


def test_a_config_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SFTConfig().seed = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        SFTConfig().training.learning_rate = 3.0  # type: ignore[misc]


# ------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\ntraining:\n  num_epochs: 1\n  lerning_rate: 1\n",
            " line 4: unknown key 'training.lerning_rate'; did you mean 'training.learning_rate'?",
        ),
        ("trainin:\n  seed: 1\n", " line 1: unknown key 'trainin'; did you mean 'training'?"),
        ("seed: 1\nlearning_rate: 1\n", " line 2: unknown key 'learning_rate'; did you mean 'training.learning_rate'?"),
        ("training:\n  d_model: 1\n", " line 2: unknown key 'training.d_model'; did you mean 'model.d_model'?"),
        # 'model' is near by, and model.base_model is the very name
        ("base_model: x\n", " line 1: unknown key 'base_model'; did you mean 'model.base_model'?"),
        ("data: {limits: 3}\n", " line 1: unknown key 'data.limits'; did you mean 'data.limit'?"),
        (
            "data: {zzz: 3}\n",
            " line 1: unknown key 'data.zzz'; known keys here: data.train, data.limit, "
            "data.heldout, data.heldout_fraction, data.examples.",
        ),
        (
            "training:\n  learning_rate: fast\n",
            " line 2: training.learning_rate: expected a number, found 'fast'.",
        ),
        ("training:\n  batch_size: 0\n", " line 2: training.batch_size: expected greater than or equal to 1, found 0."),
        ("training:\n  batch_size: 1.5\n", None),
        ("seed: [1]\n", " line 1: seed: expected a whole number, found [1]."),
        ("precision: half\n", " line 1: precision: expected 'auto', 'float32' or 'bfloat16', found 'half'."),
        ("training:\n", " line 1: training: expected 'key: value' lines below it, found nothing."),
        ("seed: 1\nmodel: mamba\n", " line 2: model: expected 'key: value' lines below it, found 'mamba'."),
        (
            "training:\n  batch_size: 4\n  num_epochs: 1\n  batch_size: 5\n",
            " line 4: the key 'training.batch_size' occurs twice (first on line 2); remove one.",
        ),
        ("seed: 1\nseed: 1\n", " line 2: the key 'seed' occurs twice (first on line 1); remove one."),
        ("- seed\n", ": expected 'key: value' lines at the top level, found list."),
        ("training\n", ": expected 'key: value' lines at the top level, found str."),
    ],
)
def test_a_mistake_in_a_file_names_line_and_key(write: Write, text: str, message: str | None) -> None:
    said = refusal(SFTConfig, write(text))
    assert re.match(r" line \d+: |: ", said)
    if message is not None:
        assert said == message


@pytest.mark.parametrize(
    ("text", "line"),
    [("seed: 1\ntraining:\n  a: [1\n", 4), ("a: 1\n b: 2\n", 2), ("a:\n\tb: 1\n", 2), ("a: 1\n---\nb: 2\n", 2)],
)
def test_bad_yaml_names_its_line(write: Write, text: str, line: int) -> None:
    assert refusal(SFTConfig, write(text)).startswith(f" line {line}: not valid YAML: ")


def test_all_mistakes_are_reported_at_once(write: Write) -> None:
    path = write("seed: x\ntraining:\n  batch: 3\n  num_epochs: 0\n")
    with pytest.raises(UserError) as caught:
        load(SFTConfig, path)
    assert sorted(x.split(":")[0] for x in str(caught.value).splitlines()) == [f"{path} line {n}" for n in (1, 3, 4)]


def test_a_missing_file_suggests_a_file_beside_it(write: Write, tmp_path: Path) -> None:
    write("")
    assert refusal(SFTConfig, tmp_path / "c.yml") == ": no such config file; did you mean 'c.yaml'?"
    assert refusal(SFTConfig, tmp_path / "else" / "x.yaml") == ": no such config file."
    assert refusal(SFTConfig, tmp_path) == ": a folder, expected a file."
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert refusal(SFTConfig, tmp_path / "bytes.yaml").startswith(": ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", "unknown key 'training.learning_rat'; did you mean 'training.learning_rate'?"),
        ("learning_rate=1", "unknown key 'learning_rate'; did you mean 'training.learning_rate'?"),
        ("training.batch_size=many", "training.batch_size: expected a whole number, without point and exponent"),
        ("training.batch_size=", "training.batch_size: there is no value after '='; expected a whole number."),
        ("name=", "name: there is no value after '='; expected text; for an empty one type 'name=\"\"' with both"),
        ("training=3", "'training' is a section; set one of its keys, such as training.batch_size."),
        ("training.batch_size.x=3", "training.batch_size: expected a whole number, found {'x': 3}."),
        ("seed", "write it as key=value, e.g. training.learning_rate=3e-5."),
        ("=3", "write it as key=value"),
        ("seed=[1", "not valid YAML"),
    ],
)
def test_a_mistake_in_an_override_names_it(override: str, message: str) -> None:
    assert refusal(SFTConfig, None, override).startswith(f"override {override!r}: {message}")


def test_an_override_cannot_stand_under_a_value(write: Write) -> None:
    said = refusal(SFTConfig, write("training:\n  batch_size: 4\n"), "training.batch_size.x=3")
    assert said == (
        "override 'training.batch_size.x=3': 'training.batch_size.x' cannot be set: 'training.batch_size' is the value"
        " 4, not a section."
    )


def test_mistakes_inside_lists_name_the_item(write: Write) -> None:
    text = "reward:\n  terms:\n    - source: a\n    - source: b\n      wieght: 2\n"
    said = refusal(PPO, write(text))
    assert said == " line 5: unknown key 'reward.terms.1.wieght'; did you mean 'reward.terms.1.weight'?"
    said = refusal(PPO, write("reward:\n  terms:\n    - weight: 2\n"))
    assert said == " line 2: the required key 'reward.terms.0.source' is missing."


@pytest.mark.parametrize(
    ("cls", "override", "words"),
    [
        (PPO, "kl.estimator=k3", "kl.placement=reward takes estimator k1"),
        (CompareConfig, "models={dpo: dpo}", "name one of them 'sft'"),
        (CompareConfig, "models={sft: a, ppo.v2: b}", "the label 'ppo.v2' cannot be a key of results.json"),
        (CompareConfig, "models={sft: a, reward: b}", "the label 'reward' cannot be a key of results.json"),
        (CompareConfig, "models={sft: a, sft again: b}", "the label 'sft again' cannot be a key of results.json"),
        (CompareConfig, "models={sft: a, '': b}", "the label '' cannot be a key of results.json"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(cls: Any, override: str, words: str) -> None:
    said = refusal(cls, None, override)
    assert said.startswith(f"override {override!r}: ")
    assert words in said


def test_wrong_items_and_long_values_are_named_once(write: Write) -> None:
    settings = STAGE_KINDS["pairs"].settings
    assert (
        refusal(settings, write("temperatures: []\n"))
        == " line 1: temperatures: expected a list of at least 1, found []."
    )
    said = refusal(settings, None, "temperatures=[1.0, yes]")
    assert said.endswith(
        "temperatures.1: expected a number, not a boolean (yes, no, on, off, true, false), found True."
    )
    with pytest.raises(UserError, match=r"seed: expected .*, found a int\.$"):
        build(SFTConfig, {"seed": 10**5000}, {}, "here")
    said = refusal(SFTConfig, write(f"training:\n  schedule: {'x' * 5000}\n"))
    assert said.endswith(f"found '{'x' * 160}…'.")


# ------------------------------------------------------------------ pieces
def test_overrides_are_read_as_yaml() -> None:
    assert parse_override("a.b=1.5") == ("a.b", 1.5)
    assert parse_override("a= [1, x]") == ("a", [1, "x"])
    assert parse_override("a=true") == ("a", True)
    assert parse_override("a=b=c") == ("a", "b=c")
    assert parse_override("--a.b=1") == ("a.b", 1)


def test_put_does_not_change_its_argument() -> None:
    inner = {"b": 1}
    values: dict[str, Any] = {"a": inner, "n": None}
    put(values, "a.c", 2, "here")
    put(values, "x.y.z", 3, "here")
    put(values, "n.m", 4, "here")
    assert values == {"a": {"b": 1, "c": 2}, "x": {"y": {"z": 3}}, "n": {"m": 4}}
    assert inner == {"b": 1}
    with pytest.raises(UserError, match=r"^here: 'a.b.c' cannot be set: 'a.b' is the value 1"):
        put(values, "a.b.c", 1, "here")


def test_yaml_that_is_shown_is_plain() -> None:
    shown = to_yaml(PPO())
    assert yaml.safe_load(shown) == PPO().model_dump(mode="json")
    assert list(yaml.safe_load(shown)) == list(LanguagePPOConfig.model_fields)  # in the order of the settings


@pytest.mark.parametrize("kind", ["base", "sft"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.heldout=a.jsonl", "data.heldout_fraction=0.1"], "data: heldout names a file of held-out rows and"),
        (["eval_every=-1"], "eval_every: expected greater than or equal to 0, found -1"),
        (["eval_every=0.5"], "eval_every: expected a whole number"),
        (["data.heldout_fraction=1.5"], "data.heldout_fraction: expected less than or equal to 1, found 1.5"),
        (["data.heldout_fraction=.nan"], "data.heldout_fraction: expected "),
        (["data.held_out=a"], "unknown key 'data.held_out'; did you mean 'data.heldout'?"),
        (["training.eval_every=5"], "unknown key 'training.eval_every'; did you mean 'eval_every'?"),
    ],
)
def test_settings_of_held_out_texts_are_checked(kind: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(STAGE_KINDS[kind].settings, None, overrides)
    assert message in str(caught.value)


def test_how_often_the_held_out_loss_is_measured_reruns_nothing() -> None:
    settings = STAGE_KINDS["sft"].settings
    assert load(settings, None, ["eval_every=5"]).fingerprint() == load(settings, None).fingerprint()
    assert load(settings, None, ["data.heldout=a"]).fingerprint() != load(settings, None).fingerprint()
