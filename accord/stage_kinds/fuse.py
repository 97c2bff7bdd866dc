"""The stage ``fuse``: merges several models of one architecture."""

from __future__ import annotations

from dataclasses import replace

from accord.config.fusion import FuseConfig
from accord.fusion.calibrate import read_calibration
from accord.fusion.merge import merge, open_sources
from accord.fusion.weights import open_weights
from accord.io.digests import read_manifest
from accord.io.finite_json import figures
from accord.runtime.run import Run


def run_fuse(config: FuseConfig, run: Run) -> dict[str, float]:
    """Merges the models into ``model/``; returns counts, and the score statistics of a reward model."""
    opened = open_sources(config)
    digests, paths = (
        {**opened.digests, **run.parents},
        {**opened.paths, **run.sources},
    )  # those of the hub by their commit
    sources = replace(opened, digests=digests, paths=paths)
    if config.calibrate:
        read_calibration(sources.models[0], config)
    tensors = len(open_weights(sources.models[0]).layouts)
    run.plan(
        {
            "method": in_words(config),
            "models": ", ".join(f"{s.model} (weight {s.weight:g})" for s in config.models),
            **({"base": config.base} if config.base else {}),
            "tensors": f"{tensors:,}, one at a time, in float32",
        }
    )
    run.begin(tensors, resumable=False)
    merged = 0

    def tick(parameters: int) -> None:
        nonlocal merged
        merged += parameters
        run.tick({"parameters": float(merged)})
        run.check_stop()

    target = run.directory / "model"
    merge(config, target, run.name, run.key, tick, sources)
    metrics = figures(read_manifest(target)["metrics"])
    run.record(metrics)
    run.say(f"wrote {target} (opens with transformers)")
    return metrics


def in_words(config: FuseConfig) -> str:
    """The method and the settings that it uses."""
    words: list[str] = [config.method]
    if config.method in ("slerp", "interpolate"):
        words.append(f"t {config.t:g}")
    else:
        words.append("weights normalized" if config.normalizes else "weights not normalized")
    if config.scaling != 1:
        words.append(f"task vectors times {config.scaling:g}")
    if any(s.density < 1 for s in config.models):
        words.append("density " + ", ".join(f"{s.density:g}" for s in config.models))
    return ", ".join(words)
