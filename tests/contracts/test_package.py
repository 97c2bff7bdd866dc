"""The package as it is imported and installed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import accord

REPO = Path(__file__).parents[2]


def test_the_public_names_are_importable() -> None:
    from accord.models.heads import ActorCritic
    from accord.models.language import LanguageActorCritic
    from accord.models.open import open_backbone
    from accord.models.reward import RewardModel

    assert accord.ActorCritic is ActorCritic
    assert accord.LanguageActorCritic is LanguageActorCritic
    assert accord.open_backbone is open_backbone
    assert accord.RewardModel is RewardModel
    assert set(accord.__all__) == {
        *("ActorCritic", "LanguageActorCritic", "RewardModel", "__version__", "open_backbone"),
        *("Failed", "Interrupted", "UserError", "Waiting", "load", "run", "stages"),
    }
    with pytest.raises(AttributeError, match="module 'accord' has no attribute 'Trainer'"):
        accord.Trainer  # noqa: B018


def test_the_version_is_the_projects() -> None:
    written = (REPO / "pyproject.toml").read_text().split('\nversion = "')[1].split('"')[0]
    assert accord.__version__ == written


def test_importing_is_light() -> None:
    """``import accord`` loads neither torch nor anything else that is slow; models need no web, plots or games."""
    code = (
        "import sys, accord\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'rich', 'pydantic', 'numba'} & set(sys.modules)))\n"
        "accord.ActorCritic, accord.LanguageActorCritic, accord.RewardModel, accord.open_backbone\n"
        "print(sorted({'transformers', 'numba', 'rich', 'gymnasium', 'ray', 'datasets', 'matplotlib', 'fastapi',"
        " 'vaderSentiment', 'tensorboardX'} & set(sys.modules)))\n"
    )
    out = subprocess.check_output([sys.executable, "-c", code], cwd=REPO, text=True, timeout=120)
    assert out.splitlines() == ["[]", "[]"]


OPTIONAL = {"accord.kernels.selective_scan_triton": "triton"}
"""Modules that need what only some machines have."""


def test_every_module_imports_and_says_what_it_is() -> None:
    for module in pkgutil.walk_packages(accord.__path__, "accord."):
        if module.name in OPTIONAL and importlib.util.find_spec(OPTIONAL[module.name]) is None:
            continue
        loaded = importlib.import_module(module.name)
        assert module.ispkg or (loaded.__doc__ or "").strip(), f"{module.name} has no docstring"


def test_types_are_shipped() -> None:
    assert (REPO / "accord" / "py.typed").exists()
    assert not list((REPO / "accord").rglob("utils.py"))


def test_nothing_unpickles_code() -> None:
    """Weights come from safetensors or from loads that refuse code."""
    found = 0
    for path in (REPO / "accord").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert ast.unparse(node.func) == "torch.load", path
                assert keywords["weights_only"] == "True", path
                found += 1
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", path
    assert found
