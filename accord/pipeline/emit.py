"""A pipeline as a Makefile or as DVC's dvc.yaml.  accord itself still decides what is up to date."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from accord.errors import UserError
from accord.io.installation import located
from accord.pipeline.plan import PipelineConfig, Planned

TOOLS = ("makefile", "dvc")


def emit(
    tool: str, path: str | Path, overrides: Sequence[str], pipeline: PipelineConfig, planned: Sequence[Planned]
) -> str:
    """The text of the file.  Raises UserError where a stage's name is not possible there."""
    words = shlex.join(["run", str(path), *overrides])
    return makefile(words, planned) if tool == "makefile" else dvc(words, path, pipeline, planned)


def makefile(words: str, planned: Sequence[Planned]) -> str:
    """A phony target for each stage, since stages depend on contents and not on modification times."""
    names = [stage.name for stage in planned]
    if "all" in names:
        raise UserError("--emit makefile: 'all' is the target for the whole pipeline; give the stage another name.")
    words = words.replace("$", "$$").replace("#", r"\#")
    lines = [
        "# Written by: accord " + words.replace("\n", " ") + " --emit makefile",
        "ACCORD ?= accord",
        f".PHONY: all {' '.join(names)}",
        f"all: {' '.join(names)}",
        f"\t$(ACCORD) {words}",
    ]
    for stage in planned:
        lines += [f"{stage.name}:{''.join(f' {n}' for n in stage.needs)}", f"\t$(ACCORD) {words} --only {stage.name}"]
    return "\n".join(lines) + "\n"


def dvc(words: str, path: str | Path, pipeline: PipelineConfig, planned: Sequence[Planned]) -> str:
    """A DVC stage for each stage, with _ for a dot in its name.  Outputs persist, so that accord can resume."""
    stages: dict[str, Mapping[str, Any]] = {}
    for stage in planned:
        name = stage.name.replace(".", "_")
        if name in stages:
            raise UserError(f"--emit dvc: two stages would be called {name!r}; change a name or a grid's values.")
        stages[name] = {
            "cmd": f"accord {words} --only {stage.name}",
            "deps": [
                *(str(located(file)) for file in (path, *stage.files)),
                *(f"{pipeline.out}/{need}" for need in stage.needs),
            ],
            "outs": [{f"{pipeline.out}/{stage.name}": {"cache": False, "persist": True}}],
        }
    head = f"# Written by: accord {words} --emit dvc\n"
    return head + yaml.safe_dump({"stages": stages}, sort_keys=False, allow_unicode=True, width=10_000)
