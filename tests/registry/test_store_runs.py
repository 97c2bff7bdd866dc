"""Which version a name alone means: that of the current run, not of a try elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.errors import UserError
from accord.registry.store import Store, Version, open_store

Add = Callable[..., Version]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the registry is ``checkpoints/registry.sqlite``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACCORD_REGISTRY", raising=False)
    return tmp_path


@pytest.fixture
def add(project: Path, make: Any) -> Add:
    def register(weights: float, out: str | None, name: str = "sft") -> Version:
        return open_store().add(make(name, weights), out=None if out is None else Path(out))

    return register


def test_a_try_elsewhere_does_not_become_what_the_name_means(add: Add) -> None:
    add(1, "checkpoints/rlhf")
    add(2, "runs/try")
    assert open_store().find("sft").label == open_store().find("sft@latest").label == "sft@1"
    assert open_store(None, "runs/try").find("sft").label == "sft@2"
    add(3, "checkpoints/rlhf")
    assert open_store().find("sft").label == "sft@3"
    assert open_store(None, "runs/try").find("sft").label == "sft@2"
    assert [v.aliases for v in open_store().list()] == [(), (), ("latest",)]


def test_the_only_run_is_meant_where_the_usual_one_has_none(add: Add) -> None:
    add(1, "runs/a")
    add(2, "runs/a")
    assert open_store().find("sft").label == "sft@2"
    add(3, "runs/b")
    with pytest.raises(UserError) as refused:
        open_store().find("sft")
    assert str(refused.value) == (
        "sft: no version of sft comes from checkpoints/rlhf; there are sft@1 (runs/a), sft@2 (runs/a), sft@3 (runs/b):"
        " name a version, or give --out."
    )
    assert [v.aliases for v in open_store().list()] == [(), (), ()]
    assert open_store().find("sft@3").outs == ("runs/b",)


def test_a_run_that_is_asked_for_must_have_the_model(add: Add) -> None:
    add(1, "checkpoints/rlhf")
    with pytest.raises(UserError, match=r"no version of sft comes from runs/typo; there are sft@1 .checkpoints/rlhf."):
        open_store(None, "runs/typo").find("sft")
    both = open_store(None, "runs/typo", "checkpoints/rlhf")
    assert both.find("sft").label == "sft@1", "as a stage looks: in its own run, then in the usual one"


def test_the_same_content_of_two_runs_is_one_version_and_the_newest_of_both(add: Add) -> None:
    add(1, "checkpoints/rlhf")
    add(2, "checkpoints/rlhf")
    again = add(1, "runs/try")
    assert (again.label, again.outs) == ("sft@1", ("runs/try", "checkpoints/rlhf"))
    assert open_store().find("sft").label == "sft@2"
    assert open_store(None, "runs/try").find("sft").label == "sft@1"


def test_an_imported_version_is_of_every_run(add: Add) -> None:
    add(1, "checkpoints/rlhf")
    assert add(2, None).outs == ()
    assert open_store().find("sft").label == "sft@2"
    assert open_store(None, "runs/x").find("sft").label == "sft@2"
    add(3, "checkpoints/rlhf")
    assert open_store().find("sft").label == "sft@3"


def test_a_run_that_lost_its_newest_version_has_the_one_before(add: Add) -> None:
    for weights in (1, 2):
        add(weights, "checkpoints/rlhf")
    add(3, "runs/try")
    open_store().remove("sft")
    assert open_store().find("sft").label == "sft@1"


def test_a_moved_project_knows_its_runs(add: Add, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(1, "checkpoints/rlhf")
    add(2, "runs/try")
    moved = project.with_name(project.name + "-moved")
    project.rename(moved)
    monkeypatch.chdir(moved)
    assert open_store().find("sft").outs == ("checkpoints/rlhf",)
    assert open_store(None, "runs/try").find("sft").outs == ("runs/try",)


def test_the_commands_show_runs_and_take_out(add: Add, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(1, "checkpoints/rlhf")
    add(2, "runs/try")
    assert main(["models", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "@" in line]
    assert [row[:4] for row in rows] == [
        ["sft@1", "latest", "sft", "checkpoints/rlhf"],
        ["sft@2", "sft", "runs/try", "nll"],
    ]
    assert main(["models", "show", "sft", "--out", "runs/try"]) == 0
    assert "run      runs/try" in capsys.readouterr().out
    for words, version in (([], 1), (["--out", "runs/try"], 2)):
        target = f"export{version}"
        assert main(["models", "export", "sft", target, *words]) == 0
        assert json.loads((project / target / ".accord_export.json").read_text())["version"] == version
    assert main(["models", "show", "sft", "--json"]) == 0
    assert main(["models", "list", "--json"]) == 0
    assert '"outs": [\n      "runs/try"\n    ]' in capsys.readouterr().out


def test_undefined_figures_come_back_as_such(store: Store, make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    added = store.add(make(metrics={"nll": float("nan"), "loss": 1.0}))
    assert repr(dict(added.metrics)) == "{'nll': nan, 'loss': 1.0}"
    assert "NaN" not in (added.folder / "manifest.json").read_text()
    assert repr(store.find("sft").record.metrics) == "{'nll': nan, 'loss': 1.0}"
