"""A lineage in words, as a tree and as Mermaid text."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from accord.io.digests import content_digest
from accord.registry.family import Family, Record, of_path
from accord.registry.lineage import key_settings, mermaid, tree


def test_key_settings_are_the_documented_ones() -> None:
    record = Record("a", "dpo", "d", settings={"training": {"beta": 0.1, "learning_rate": 1e-4, "warmup_steps": 0}})
    assert key_settings(record) == {"beta": "0.1", "learning_rate": "0.0001"}
    fused = Record(
        "a", "fuse", "d", parents={"base": "x"}, settings={"method": "slerp", "t": 0.5, "base": "sft", "none": None}
    )
    assert key_settings(fused) == {"method": "slerp", "t": "0.5"}


def test_the_tree_shows_each_ancestor_once(world: dict[str, Path]) -> None:
    digest = content_digest(world["pairs"])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tree(digest, of_path(world["pairs"], digest), {content_digest(world["sft"]): "sft@3"}))
    text = console.export_text()
    assert text.splitlines()[0].startswith("pairs/preferences.jsonl  data · ")
    assert "model.base_model  sft@3  sft · " in text
    assert text.count("demo/base.jsonl") == 1
    assert "noise 0.4" in text


def test_mermaid_text_has_each_ancestor_and_each_edge_once(diamond: Family) -> None:
    family = diamond
    text = mermaid("dddd", family, {})
    nodes = re.findall(r'^  (n\d+)\["([^"]*)"\]:::\w+$', text, re.M)
    names = {node: label.split("<br>")[0] for node, label in nodes}
    edges = re.findall(r'^  (n\d+) -->\|"([^"]*)"\| (n\d+)$', text, re.M)
    assert text.splitlines()[0] == "flowchart TD"
    assert len(text.splitlines()) == 1 + len(nodes) + len(edges) + 3
    assert sorted((names[upper], role, names[lower]) for upper, role, lower in edges) == [
        ("a", "model.base_model", "b #60;1#62;"),
        ("a", "reference", "d"),
        ("b #60;1#62;", "model.base_model", "c"),
        ("b #60;1#62;", "model.base_model", "d"),
        ("c", "reward.source", "d"),
        ("f.jsonl", "data.train", "c"),
        ("m:f", "x", "d"),
    ]


def test_no_name_ends_a_mermaid_label() -> None:
    text = mermaid("aaaa", {"aaaa": Record('x"] --> y', "base", "aaaa")}, {})
    assert text.splitlines()[1] == '  n0["x#34;#93; --#62; y<br>base · aaaa"]:::model'
