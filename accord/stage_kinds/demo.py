"""The stage ``demo``: writes the small world's files."""

from __future__ import annotations

from accord.config.data import DemoConfig
from accord.data import demo
from accord.runtime.run import Run


def run_demo(config: DemoConfig, run: Run) -> dict[str, float]:
    """Writes base.jsonl, sft.jsonl, preferences.jsonl, prompts.jsonl, and heldout_ files of all but preferences."""
    run.open_folders()
    paths = demo.write(run.directory, config)
    run.say(f"wrote the small world (seed {config.seed}): {', '.join(p.name for p in paths.values())}")
    return {"files": float(len(paths))}
