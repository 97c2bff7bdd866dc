"""What an artifact records of its ancestors, and how lineage is shown."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from accord.data.tokenizer import small_tokenizer
from accord.errors import UserError
from accord.io.digests import content_digest, read_manifest, verify
from accord.models.open import open_backbone
from accord.models.transformer import small_transformer
from accord.registry.family import Family, Record, ancestors, from_json, of_path, read_lineage, to_json
from accord.registry.lineage import key_settings, main_metric, mermaid, tree
from accord.registry.picture import Box, _crossings, _layers, _order, _place, svg
from accord.registry.store import Store
from accord.runtime.run import Run
from accord.training.artifact import open_tokenizer, save_artifact


def stage_folder(
    root: Path, name: str, file: str, content: str, record: dict[str, Any], config: dict[str, Any]
) -> Path:
    """A finished stage that wrote a data file."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / file).write_text(content)
    done = {"kind": name, "inputs": {}, "metrics": {}, "key": "k", **record}
    (folder / "done.json").write_text(json.dumps(done))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "out": str(root), **config}))
    return folder / file


@pytest.fixture
def world(tmp_path: Path, make: Any) -> dict[str, Path]:
    """demo → base → sft; sft, demo → pairs: each knows only what is beside it."""
    root = tmp_path / "project" / "rlhf"
    text = stage_folder(root, "demo", "base.jsonl", "{}\n", {}, {"base_rows": 3})
    prompts = root / "demo" / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n')
    family = ancestors({"data.train": content_digest(text)}, {"data.train": str(text)})
    base = make("base", 1, "base", {"data.train": content_digest(text)}, family)
    of_base = {"model.base_model": content_digest(base)}
    sft = make("sft", 2, "sft", of_base, ancestors(of_base, {"model.base_model": str(base)}))
    inputs = {"model.base_model": content_digest(sft), "prompts": content_digest(prompts)}
    config = {"model": {"base_model": str(sft)}, "prompts": str(prompts), "noise": 0.4}
    pairs = stage_folder(root, "pairs", "preferences.jsonl", "{ }\n", {"inputs": inputs}, config)
    return {"text": text, "prompts": prompts, "base": base, "sft": sft, "pairs": pairs}


# ------------------------------------------------------------------ records
def test_a_data_file_knows_its_ancestors_through_its_stage(world: dict[str, Path]) -> None:
    family = of_path(world["pairs"], content_digest(world["pairs"]))
    names = {r.name: (r.kind, r.form) for r in family.values()}
    assert names == {
        "demo/base.jsonl": ("demo", "data"),
        "base": ("base", "model"),
        "sft": ("sft", "model"),
        "demo/prompts.jsonl": ("demo", "data"),
        "pairs/preferences.jsonl": ("pairs", "data"),
    }
    own = family[content_digest(world["pairs"])]
    assert own.parents == {
        "model.base_model": content_digest(world["sft"]),
        "prompts": content_digest(world["prompts"]),
    }
    assert own.settings["noise"] == 0.4
    assert "out" not in own.settings


def test_ancestors_come_before_their_descendants(world: dict[str, Path]) -> None:
    order = list(of_path(world["pairs"], content_digest(world["pairs"])))
    family = of_path(world["pairs"], content_digest(world["pairs"]))
    assert all(order.index(p) < order.index(d) for d, r in family.items() for p in r.parents.values())


def test_an_input_that_changed_since_is_not_taken_for_the_one_of_then(world: dict[str, Path], make: Any) -> None:
    was = content_digest(world["sft"])
    make("sft", 3)
    family = of_path(world["pairs"], content_digest(world["pairs"]))
    assert family[was].name == "?"
    assert "base" not in {r.name for r in family.values()}


def test_what_no_stage_made_is_recorded_by_name_and_kind(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    sources = {"data.train": str(tmp_path / "mine.jsonl"), "model.base_model": str(tmp_path / "hf")}
    parents = {key: content_digest(Path(path)) for key, path in sources.items()}
    family = ancestors({**parents, "annotator": "my.module:judge"}, sources)
    assert [(r.name, r.kind, r.form) for r in family.values()] == [
        ("mine.jsonl", "data", "data"),
        ("hf", "model", "model"),
        ("my.module:judge", "function", "function"),
    ]


def test_records_are_read_back_as_written(world: dict[str, Path]) -> None:
    family = of_path(world["pairs"], content_digest(world["pairs"]))
    assert from_json(json.loads(json.dumps(to_json(family))), "x") == family
    newer = to_json(family)
    newer["records"][0]["a key of tomorrow"] = 1
    assert from_json(newer, "x") == family
    for content in ({}, {"records": [1]}, {"records": [{"name": "no digest"}]}):
        with pytest.raises(UserError, match="x: not a lineage"):
            from_json(content, "x")
    (world["sft"] / "lineage.json").write_text("{")
    with pytest.raises(UserError, match=r"lineage.json: not valid JSON"):
        read_lineage(world["sft"])


def test_a_stage_leaves_an_artifact_complete_by_itself(
    world: dict[str, Path], tmp_path: Path, open_run: Callable[..., Run]
) -> None:
    """Manifest, config, tokenizer, metrics, lineage; opens by itself; a changed byte is refused by name."""
    sources = {"model.base_model": str(world["sft"]), "data.train": str(world["pairs"]), "reward.source": "my:judge"}
    parents = {k: content_digest(Path(v)) if k != "reward.source" else v for k, v in sources.items()}
    settings = {"training": {"beta": 0.1}, "out": "somewhere", "seed": 5}
    with open_run("dpo", seed=5, sources=sources, parents=parents, settings=settings) as run:
        save_artifact(run, small_transformer(32, 1, 50, 1, 0), small_tokenizer(), "dpo", {"accuracy": 0.7})
    model = tmp_path / "out" / "dpo" / "model"
    manifest = read_manifest(model)
    assert manifest["settings"] == {"training": {"beta": 0.1}, "seed": 5}
    assert manifest["data"] == {"data.train": content_digest(world["pairs"])}
    assert manifest["base"] == content_digest(world["sft"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["created"])
    moved = tmp_path / "another machine"
    model.rename(moved)
    verify(moved)
    names = {r.name for r in read_lineage(moved).values()}
    assert names == {"demo/base.jsonl", "base", "sft", "demo/prompts.jsonl", "pairs/preferences.jsonl", "my:judge"}
    open_backbone(moved)
    open_tokenizer(str(moved))
    content = bytearray((moved / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (moved / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"model.safetensors: changed"):
        open_backbone(moved)
    open_tokenizer(str(moved))
    (moved / "tokenizer.json").write_text((moved / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match=r"tokenizer.json: changed"):
        open_tokenizer(str(moved))


def test_the_registry_adds_what_an_old_artifact_does_not_record(store: Store, make: Any) -> None:
    base = store.add(make("base", 1, "base"))
    old = make("sft", 2, "sft", {"model.base_model": base.digest})
    (old / "lineage.json").unlink()
    family = store.lineage(store.add(old))
    assert {r.name for r in family.values()} == {"base", "sft"}


# ------------------------------------------------------------------ words
def test_key_settings_and_main_figures_are_the_documented_ones() -> None:
    record = Record("a", "dpo", "d", settings={"training": {"beta": 0.1, "learning_rate": 1e-4, "warmup_steps": 0}})
    assert key_settings(record) == {"beta": "0.1", "learning_rate": "0.0001"}
    fused = Record(
        "a", "fuse", "d", parents={"base": "x"}, settings={"method": "slerp", "t": 0.5, "base": "sft", "none": None}
    )
    assert key_settings(fused) == {"method": "slerp", "t": "0.5"}
    assert main_metric("sft", {"loss": 1.0, "nll": 2.0}) == ("nll", 2.0)
    assert main_metric("fuse", {"learning_rate": 1.0, "drift": 2.0}) == ("drift", 2.0)
    assert main_metric("fuse", {}) is None


def test_the_tree_shows_each_ancestor_once(world: dict[str, Path]) -> None:
    digest = content_digest(world["pairs"])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tree(digest, of_path(world["pairs"], digest), {content_digest(world["sft"]): "sft@3"}))
    text = console.export_text()
    assert text.splitlines()[0].startswith("pairs/preferences.jsonl  data · ")
    assert "model.base_model  sft@3  sft · " in text
    assert text.count("demo/base.jsonl") == 1
    assert "noise 0.4" in text


def test_mermaid_text_has_each_ancestor_and_each_edge_once() -> None:
    family = diamond()
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


# ------------------------------------------------------------------ the picture
def diamond() -> Family:
    """a → b, c → d, and a → d over two layers, with a function beside."""
    rows = [
        Record("a", "base", "aaaa"),
        Record("b <1>", "sft", "bbbb", parents={"model.base_model": "aaaa"}),
        Record("c", "reward", "cccc", parents={"model.base_model": "bbbb", "data.train": "ffff"}),
        Record("f.jsonl", "demo", "ffff", "data"),
        Record(
            "d",
            "ppo",
            "dddd",
            parents={"model.base_model": "bbbb", "reference": "aaaa", "reward.source": "cccc", "x": "m:f"},
        ),
        Record("m:f", "function", "m:f", "function"),
    ]
    return {r.digest: r for r in rows}


def test_ancestors_are_drawn_above_and_boxes_do_not_overlap() -> None:
    family = diamond()
    layers, edges = _layers("dddd", family, {})
    assert [{b.key for b in layer if b.text} for layer in layers] == [
        {"dddd"},
        {"cccc", "m:f"},
        {"bbbb", "ffff"},
        {"aaaa"},
    ]
    assert sorted(len(e.path) for e in edges) == [2, 2, 2, 2, 2, 3, 4], "long edges have a point in each layer between"
    _order(layers, edges)
    _place(layers, edges)
    boxes = [b for layer in layers for b in layer]
    for layer in layers:
        for left, right in pairwise(layer):
            assert left.x + left.width / 2 < right.x - right.width / 2
    place = {b.key: b for b in boxes}
    for edge in edges:
        for upper, lower in pairwise(edge.path):
            assert place[upper].y + place[upper].height + place[upper].room < place[lower].y + 1e-9
    assert min(b.x - b.width / 2 for b in boxes) > 0


def test_lines_that_need_not_cross_do_not() -> None:
    """Two chains side by side, given in the wrong order."""
    rows = [Record("r", "x", "r", parents={"1": "p1", "2": "p2", "3": "p3"})]
    rows += [Record(f"p{i}", "x", f"p{i}", parents={"up": f"q{4 - i}"}) for i in (1, 2, 3)]
    rows += [Record(f"q{i}", "x", f"q{i}") for i in (1, 2, 3)]
    family = {r.digest: r for r in rows}
    layers, edges = _layers("r", family, {})
    layers[2].sort(key=lambda b: b.key)
    below = {e.path[0]: [e.path[1]] for e in edges}
    assert _crossings(layers, below) == 3
    _order(layers, edges)
    assert _crossings(layers, below) == 0


def test_the_picture_is_whole_and_escaped() -> None:
    text = svg("dddd", diamond(), {"cccc": "c@7"})
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    words = [t.text for t in root.iter(f"{space}text")]
    assert {"a", "b <1>", "c@7", "d", "f.jsonl", "m:f"} <= set(words)
    assert words.count("base_model") == 3
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in list(root.iter(f"{space}rect"))[1:]:
        assert 0 <= float(rect.attrib["x"]) <= float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width
        assert 0 <= float(rect.attrib["y"]) <= float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height


def test_a_forged_circle_of_ancestors_does_not_loop_forever() -> None:
    family = {d: Record(d, "x", d, parents={"up": u}) for d, u in (("a", "b"), ("b", "a"))}
    assert svg("a", family, {})
    assert tree("a", family, {})
    assert Box("x", 0).width == 12
