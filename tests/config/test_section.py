"""Sections of a config: their keys, their schema, and the fingerprint of what changes results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from accord.config.load import load, put, to_yaml
from accord.config.on_policy import LanguagePPOConfig
from accord.config.reward import REWARD
from accord.config.section import digest, known_keys
from accord.config.variants import Variants
from accord.errors import UserError
from accord.stage_kinds.table import STAGE_KINDS

CHANGES = {  # one setting of each kind of stage
    "demo": "base_rows=7",
    "pretrained": "source=my/folder",
    "base": "model.base_model=transformer",
    "sft": "training.learning_rate=3e-5",
    "pairs": "temperatures=[0.7, 1.3]",
    "sample": "temperatures=[0.7, 1.3]",
    "judge": "noise=0",
    "reward": "training.head_learning_rate=1e-3",
    "ppo": "reward.terms=[{source: a}, {source: 'm:f', weight: -2}]",
    "dpo": "training.label_smoothing=0.1",
    "compare": "models={sft: 'on', dpo: '1e3'}",
    "fuse": "models={a: 'on', b: {model: '1e3', weight: -2}}",
}


def test_known_keys_are_all_dotted_settings() -> None:
    keys = set(known_keys(LanguagePPOConfig))
    assert {"seed", "training", "training.clip_range", "kl.beta", "reward.terms", "reward.terms.*.weight"} <= keys
    assert "training.beta" not in keys


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_schema_is_json_schema_with_descriptions(kind: str) -> None:
    """Every reference resolves, unknown keys are refused, defaults are those of the class, and descriptions are there."""
    settings = STAGE_KINDS[kind].settings
    schema = json.loads(json.dumps(settings.model_json_schema()))
    types = {"string", "integer", "number", "boolean", "array", "object", "null"}
    described = 0

    def walk(node: dict[str, Any]) -> None:
        nonlocal described
        assert not set(node.get("type", "object").split()) - types
        if "$ref" in node:
            assert node["$ref"].removeprefix("#/$defs/") in schema["$defs"]
        if "properties" in node:
            assert node["additionalProperties"] is False
        described += "description" in node
        children = [*node.get("properties", {}).values(), *node.get("anyOf", ()), *node.get("allOf", ())]
        children += [node[k] for k in ("items",) if k in node]
        children += [node["additionalProperties"]] if isinstance(node.get("additionalProperties"), dict) else []
        for child in children:
            walk(child)

    for node in [schema, *schema.get("$defs", {}).values()]:
        walk(node)
    shown = [(settings, schema)]
    if isinstance(settings, Variants):
        assert {choice["$ref"] for choice in schema["anyOf"]} == {
            f"#/$defs/{c.__name__}" for c in settings.classes.values()
        }
        shown = [(cls, schema["$defs"][cls.__name__]) for cls in settings.classes.values()]
        assert schema["description"] == settings.description
    for cls, of in shown:
        assert of["properties"]["seed"] == {
            "default": 0,
            "description": "Seed of all random draws.",
            "maximum": 2**63 - 1,
            "minimum": 0,
            "title": "Seed",
            "type": "integer",
        }
        assert set(of["properties"]) == set(cls.model_fields)
        assert of["description"] == cls.__doc__
    assert described > 9


# ------------------------------------------------------------------ fingerprints
RUNTIME = ["name=x", "out=x", "logs=x", "device=cpu", "log_every=3", "save_every=3", "threads=2"]


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_what_does_not_change_results_is_not_in_the_fingerprint(kind: str) -> None:
    assert load(STAGE_KINDS[kind].settings, None, RUNTIME).fingerprint() == STAGE_KINDS[kind].settings().fingerprint()


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_what_changes_results_is_in_the_fingerprint(kind: str) -> None:
    prints = [load(STAGE_KINDS[kind].settings, None, [o]).fingerprint() for o in (CHANGES[kind], "seed=1")]
    assert len({STAGE_KINDS[kind].settings().fingerprint(), *prints}) == 3


# ------------------------------------------------------------------ retired settings
@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_a_file_with_every_retired_default_loads_as_without_it(kind: str, tmp_path: Path) -> None:
    config = STAGE_KINDS[kind].settings()
    path = tmp_path / "config.yaml"
    values = yaml.safe_load(to_yaml(config))
    for key, default in config.retired.items():
        put(values, key, default, "")
    path.write_text(yaml.safe_dump(values))
    assert load(STAGE_KINDS[kind].settings, path) == config


def test_a_retired_setting_with_another_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"^override 'precision=bfloat16': unknown key 'precision'"):
        load(STAGE_KINDS["compare"].settings, None, ["precision=bfloat16"])
    with pytest.raises(UserError, match=r"unknown key 'model.max_prompt_length'; did you mean 'model.max_length'\?"):
        load(STAGE_KINDS["sft"].settings, None, ["model.max_prompt_length=9"])


def test_nested_settings_are_in_the_fingerprint() -> None:
    changes = ["head_learning_rate=0.5", "learning_rate=0.5", "schedule=cosine", "micro_batch_size=2", "adam_eps=0.5"]
    prints = [load(REWARD, None, [f"training.{c}"]).fingerprint() for c in changes]
    assert len({REWARD().fingerprint(), *prints}) == 1 + len(changes)


def test_a_digest_is_of_sorted_compact_json() -> None:
    """Hand-computed: blake2b with eight bytes over the compact JSON with sorted keys."""
    import hashlib

    assert (
        digest({"b": [1, None], "a": "ü"})
        == hashlib.blake2b(b'{"a":"\\u00fc","b":[1,null]}', digest_size=8).hexdigest()
    )
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
