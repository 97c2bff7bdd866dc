"""The metadata of a card, as the hub reads it, and the comparison that a model is in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from accord.io.hub import Repository, cached_folder
from accord.registry.card import card
from accord.registry.card_facts import comparisons, origin
from accord.registry.exports import export
from accord.registry.family import Family, Record
from accord.registry.store import Store

COMMIT = "0123456789abcdef" * 2 + "01234567"
BASE, DATA = f"org/base@{COMMIT}", f"org/rows@{COMMIT}:train"
OWN = Record("m", "sft", "e" * 32, parents={"model.base_model": BASE, "data.train": DATA})
FAMILY: Family = {
    OWN.digest: OWN,
    BASE: Record("org/base", "model", BASE),
    DATA: Record("org/rows:train", "data", DATA, "data"),
}
TABLE = "| model | gold reward |\n| --- | --- |\n| tuned | +1.0 |"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def base_card(text: str, name: str = "org/base") -> None:
    folder = cached_folder(Repository(name, COMMIT))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text)


def test_the_cache_is_the_tests_own(tmp_path: Path) -> None:
    assert cached_folder(Repository("org/base", COMMIT)).is_relative_to(tmp_path)


def test_base_model_and_data_sets_are_ids_of_the_hub() -> None:
    assert origin(FAMILY) == {"base_model": "org/base", "base_model_relation": "finetune", "datasets": ["org/rows"]}


def test_license_and_language_are_those_of_the_base_models_card() -> None:
    base_card("---\nlicense: apache-2.0\nlanguage:\n- en\n- de\nextra: [1]\n---\n# base\n")
    found = origin(FAMILY)
    assert (found["license"], found["language"]) == ("apache-2.0", ["en", "de"])
    assert "extra" not in found
    text = card(OWN.digest, FAMILY, {})
    assert "The license above (apache-2.0) is the base model's" in text
    assert "states no license" not in text


def test_the_hubs_own_reader_takes_the_card() -> None:
    base_card("---\nlicense: mit\nlanguage: en\n---\n")
    data = ModelCard(card(OWN.digest, FAMILY, {})).data
    assert (data.base_model, data.license, data.language, data.datasets) == ("org/base", "mit", "en", ["org/rows"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")


@pytest.mark.parametrize(
    "text",
    [
        "no front matter",
        "---\n[1, 2]\n---\n",
        "---\nlicense: {a: b}\n---\n",
        "---\n: : :\n---\n",
        "---\na: &a [x]\nlicense: *a\n---\n",
        "---\nlicense: 2026-01-01\n---\n",
        "\x00",
    ],
)
def test_a_base_models_card_that_says_nothing_usable_costs_nothing(text: str) -> None:
    base_card(text)
    assert "license" not in origin(FAMILY)
    assert "This card states no license" in card(OWN.digest, FAMILY, {})


def test_of_merged_models_only_a_common_license_is_stated() -> None:
    other = f"org/other@{COMMIT}"
    family = {**FAMILY, other: Record("org/other", "model", other)}
    base_card("---\nlicense: mit\nlanguage: en\n---\n")
    base_card("---\nlicense: gpl-3.0\nlanguage: en\n---\n", "org/other")
    found = origin(family)
    assert found["base_model"] == ["org/base", "org/other"]
    assert found["base_model_relation"] == "merge"
    assert "license" not in found
    assert found["language"] == "en"


def test_a_folder_that_was_imported_states_its_license(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    record = Record("p", "pretrained", "f" * 32, settings={"source": str(tmp_path)})
    assert origin({record.digest: record}) == {"license": "mit"}


def compare(out: Path, inputs: dict[str, str], **more: Any) -> None:
    folder = out / "compare"
    folder.mkdir(parents=True)
    (folder / "done.json").write_text(json.dumps({"kind": "compare", "inputs": inputs, "metrics": {}, **more}))
    (folder / "results.md").write_text(f"{TABLE}\n\n\n| prompt | tuned |\n")


def test_a_card_has_the_table_of_the_comparison_that_the_model_is_in(store: Store, make: Any, tmp_path: Path) -> None:
    out = tmp_path / "project" / "rlhf"
    found = store.add(make("sft"), out=out)
    compare(out, {"models.tuned": found.digest, "reference": found.digest})
    export(store, "sft", tmp_path / "exported", "hf")
    text = (tmp_path / "exported" / "README.md").read_text()
    assert "where this model is `tuned`" in text
    assert TABLE in text
    assert "| prompt |" not in text


def test_comparisons_of_other_models_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    compare(tmp_path / "a", {"models.tuned": "other", "reference": "mine"})
    compare(tmp_path / "b", {"models.tuned": "mine"}, kind="sft")
    compare(tmp_path / "c", {"models.tuned": "mine"})
    (tmp_path / "c" / "compare" / "results.md").unlink()
    compare(tmp_path / "d", {"models.tuned": "mine"})
    (tmp_path / "d" / "compare" / "done.json").write_text("{")
    assert list(comparisons("mine", [tmp_path / name for name in "abcd"])) == []
