"""mergekit's YAML as a ``FuseConfig``: ``accord fuse --config mergekit.yaml``.

Supported: ``merge_method`` (linear, slerp, task_arithmetic, ties, dare_linear, dare_ties), ``base_model``, ``models`` with
``parameters``, shared ``parameters``, ``dtype`` and ``out_dtype``.  Settings that would give another model than in
mergekit are refused; settings without effect are noted.  Remaining differences (``accord.fusion.methods``): sums are in
float32 whatever ``dtype``, and DARE divides by the density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.config.fusion import FuseConfig
from accord.config.load import build, parse_override, put
from accord.errors import UserError
from accord.io.readers import read_yaml

METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
SHARED = {"t": "t", "normalize": "normalize", "lambda": "scaling"}
"""mergekit's parameters of the whole merge, and the names here."""
REFUSED = {
    "slices": "layer ranges are not merged here; name whole models under 'models'",
    "modules": "modules are not merged separately here; name whole models under 'models'",
    "tokenizer": "vocabularies are not merged here; merge models with one tokenizer",
    "chat_template": "it is the first model's; edit chat_template.jinja of the result",
}
DTYPES = ("float32", "float16", "bfloat16")


def is_recipe(path: str | Path) -> bool:
    """Whether a config file is mergekit's."""
    return "merge_method" in read_yaml(path)[0]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[FuseConfig, list[str]]:
    """The config of a mergekit file, and notes on ignored settings.

    ``overrides`` are settings of ``FuseConfig``: ``t=0.3``, ``name=half``.  Raises UserError with file and line.
    """
    found, lines = read_yaml(path)
    values, notes = convert(found, lines, str(path))
    sources = {key: f"{path} line {line}" for key, line in lines.items()}
    sources["method"] = sources["merge_method"]
    for override in overrides:
        key, value = parse_override(override)
        sources[key] = f"override {override!r}"
        put(values, key, value, sources[key])
    return build(FuseConfig, values, sources, str(path)), notes


def convert(found: Mapping[str, Any], lines: Mapping[str, int], path: str) -> tuple[dict[str, Any], list[str]]:
    """Values for ``FuseConfig``, and notes.  Raises UserError for settings with another meaning here."""

    def refuse(key: str, why: str) -> UserError:
        return UserError(f"{path} line {lines[key]}: {key}: {why}." if key in lines else f"{path}: {key}: {why}.")

    notes: list[str] = []
    for key, why in REFUSED.items():
        if found.get(key):
            raise refuse(key, why)
    known = {"merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "tokenizer_source", *REFUSED}
    for key in found:
        if key not in known:
            raise refuse(key, f"unknown in a mergekit file; known keys are {', '.join(sorted(known - set(REFUSED)))}")
    method, base = found["merge_method"], str(found.get("base_model") or "")
    if method not in METHODS:
        raise refuse("merge_method", f"{method!r} is not among {', '.join(METHODS)}")
    if found.get("tokenizer_source") not in (None, "base"):
        raise refuse("tokenizer_source", "vocabularies are not merged here; merge models with one tokenizer")
    values: dict[str, Any] = {"method": method}
    shared = _parameters(found.get("parameters"), "parameters", refuse, notes)
    values |= {ours: shared[theirs] for theirs, ours in SHARED.items() if theirs in shared}
    _require_default_rescale(method, shared, refuse)
    values["models"] = []
    listed = found.get("models")
    if not isinstance(listed, list) or not listed:
        raise refuse("models", "expected a list of '- model: NAME' lines")
    for place, entry in enumerate(listed):
        key = f"models.{place}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str):
            raise refuse(key, "expected 'model: NAME', a folder or a stage")
        if set(entry) - {"model", "parameters"}:
            raise refuse(key, f"unknown key {min(set(entry) - {'model', 'parameters'})!r}; known are model, parameters")
        own = _parameters(entry.get("parameters"), f"{key}.parameters", refuse, notes)
        if entry["model"] == base and method not in ("linear", "slerp"):
            continue  # mergekit allows the base among the models; its task vector is zero
        both = {**shared, **own}
        supported = {"linear": ("weight",), "slerp": ()}.get(method, ("weight", "density"))
        supported = supported[:1] if method == "task_arithmetic" else supported
        if "weight" in supported and "weight" not in both:
            raise refuse(key, f"{entry['model']} has no parameters.weight, which mergekit requires")
        values["models"].append({"model": entry["model"], **{k: both[k] for k in supported if k in both}})
    if method == "slerp" and "t" not in shared:
        raise refuse("parameters", "slerp needs t, 0 for the base and 1 for the other model")
    if method == "linear" and base and base not in [m["model"] for m in values["models"]]:
        raise refuse("base_model", "mergekit would average it with the models; name it under 'models' with its weight")
    if base and method != "linear":
        values["base"] = base
    return values | _dtype(found, refuse), notes


def _parameters(given: Any, key: str, refuse: Any, notes: list[str]) -> dict[str, Any]:
    """Numbers and booleans by name; values per layer are refused."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise refuse(key, "expected 'name: value' lines below it")
    found = {}
    for name, value in given.items():
        if name == "int8_mask":
            notes.append(f"{key}.int8_mask only saves memory in mergekit; it is not needed here")
        elif name not in ("weight", "density", "rescale", *SHARED):
            raise refuse(f"{key}.{name}", f"unknown here; known are weight, density, rescale, {', '.join(SHARED)}")
        elif isinstance(value, (list, Mapping)):
            raise refuse(
                f"{key}.{name}", "values for single layers or tensors are not supported; give one number for all"
            )
        else:
            found[str(name)] = value
    return found


def _require_default_rescale(method: str, shared: Mapping[str, Any], refuse: Any) -> None:
    """Refuses a ``rescale`` other than mergekit's default: TIES never rescales here, DARE always does."""
    default = method.startswith("dare")
    if method != "linear" and shared.get("rescale", default) != default:
        why = "DARE always divides by the density here" if default else f"{method} never rescales here"
        raise refuse("parameters.rescale", f"{why}; leave it out")


def _dtype(found: Mapping[str, Any], refuse: Any) -> dict[str, str]:
    """The dtype of the written tensors: ``out_dtype``, else ``dtype``."""
    key = "out_dtype" if found.get("out_dtype") else "dtype"
    if not found.get(key):
        return {}
    if found[key] not in DTYPES:
        raise refuse(key, f"{found[key]!r} is not among {', '.join(DTYPES)}")
    return {"dtype": found[key]}
