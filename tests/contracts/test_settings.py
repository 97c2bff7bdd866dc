"""Every setting of every stage refuses what is no value of its kind, and every number has bounds."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from accord.config.load import build
from accord.config.reply import ReplySettings
from accord.config.section import Section
from accord.config.variants import Variants
from accord.errors import UserError
from accord.pipeline.plan import PipelineConfig
from accord.stage_kinds.table import STAGE_KINDS

NEEDED: Mapping[str, Mapping[str, Any]] = {
    "ControlPPOConfig": {"environment": "CartPole-v1"},
    "PipelineConfig": {"stages": {"sft": {}}},
}
ITEMS: Mapping[str, Mapping[str, Any]] = {"terms": {"source": "a"}, "models": {"model": "a"}}


def classes() -> Iterator[type[Section]]:
    for kind in STAGE_KINDS.values():
        yield from kind.settings.classes.values() if isinstance(kind.settings, Variants) else (kind.settings,)
    yield from (PipelineConfig, ReplySettings)


def leaves(cls: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, tuple[Any, ...]]]:
    """Every plain setting: its path, with ``*`` for an item of a list; its type; its bounds, and None where null is allowed."""
    for name, field in cls.model_fields.items():
        yield from _leaves(field.annotation, tuple(field.metadata), (*path, field.alias or name))


def _leaves(kind: Any, metadata: tuple[Any, ...], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        metadata += tuple(m for item in more for m in (item.metadata if isinstance(item, FieldInfo) else [item]))
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [k for k in get_args(kind) if k is not type(None)]
        if len(kinds) == 1:
            yield from _leaves(kinds[0], (*metadata, None), path)
            return
    if get_origin(kind) is tuple:
        yield path, tuple, ()
        yield from _leaves(get_args(kind)[0], (), (*path, "*"))
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from leaves(kind, path)
    else:
        yield path, kind, metadata


LEAVES = [(cls, *leaf) for cls in classes() for leaf in leaves(cls)]
NUMBERS = [leaf for leaf in LEAVES if leaf[2] in (int, float)]


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """``value`` at a path; an item of a list of sections gets what it needs."""
    head, *rest = path
    if rest[:1] == ["*"]:
        item = {**ITEMS[head], **nested(tuple(rest[1:]), value)} if rest[1:] else value
        return {head: [item]}
    return {head: nested(tuple(rest), value) if rest else value}


def refusal(cls: type[Section], path: tuple[str, ...], value: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(cls, {**NEEDED.get(cls.__name__, {}), **nested(path, value)}, {}, "the test")
    said = str(caught.value)
    key = ".".join("0" if part == "*" else part for part in path)
    assert f"the test: {key}: " in said, said
    assert len(said) < 400
    return said


def name(leaf: Any) -> str:
    return f"{leaf[0].__name__}-{'.'.join(leaf[1])}"


def test_the_walk_finds_the_settings() -> None:
    found = {(cls.__name__, ".".join(path)) for cls, path, _, _ in NUMBERS}
    assert len(found) > 150
    assert {
        ("SFTConfig", "seed"),
        ("PairsConfig", "temperatures.*"),
        ("LanguagePPOConfig", "reward.terms.*.weight"),
        ("LanguagePPOConfig", "reward.missing_eos_penalty"),
        ("FuseConfig", "models.*.density"),
        ("ControlPPOConfig", "normalize.clip"),
        ("PipelineConfig", "threads"),
    } <= found


@pytest.mark.parametrize("leaf", NUMBERS, ids=name)
def test_a_number_has_bounds_and_is_finite_and_no_boolean(leaf: Any) -> None:
    cls, path, kind, metadata = leaf
    low = [m for m in metadata if isinstance(m, (Ge, Gt))]
    high = [m for m in metadata if isinstance(m, (Le, Lt))]
    assert len(low) == len(high) == 1, "give it a type of accord/config/numbers.py"
    for value in (True, False):
        assert "expected a number, not a boolean" in refusal(cls, path, value)
    for value in (math.nan, math.inf, -math.inf, "nan"):
        assert "expected a finite number" in (said := refusal(cls, path, value)) or "whole number" in said
    for value in (10**30, -(10**30), 10**5000):
        refusal(cls, path, value)
    for value in ("many", [1], {"a": 1}):
        assert "number" in refusal(cls, path, value)
    if kind is int:
        assert "expected a whole number" in refusal(cls, path, 1.5)


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if leaf[2] in (tuple, str, bool)], ids=name)
def test_a_text_a_list_and_a_boolean_refuse_other_kinds(leaf: Any) -> None:
    cls, path, kind, metadata = leaf
    wrong: dict[Any, tuple[Any, ...]] = {
        tuple: (5, 1.5, True, "a text"),
        str: (5, 1.5, True, ["a"], {"a": "b"}),
        bool: (5, 1.5, "perhaps", [True], {"a": True}),
    }
    for value in (*wrong[kind], *(() if None in metadata else (None,))):
        refusal(cls, path, value)
