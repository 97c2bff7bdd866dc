"""Functions of the user: what is found, and that each way to fail is a sentence naming the function and the reply."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord.config.functions import is_function, load_function, load_scores, require_module, scores_of, user_code
from accord.errors import UserError

PROMPTS, TEXTS = ["p", "q"], ["first", "second " + "x" * 100]
MODULE = """
import sys
import numpy as np
import torch

def raises(prompts, replies):
    return [1 / 0]

def far_below(prompts, replies):
    return np.zeros(2).reshape(5)

def exits(prompts, replies):
    sys.exit(0)

class Odd(BaseException):
    def __str__(self):
        raise RuntimeError

def odd(prompts, replies):
    raise Odd

def endless(prompts, replies):
    while True:
        yield 1.0

def fails_later(prompts, replies):
    yield 1.0
    raise ValueError("second")

async def waits(prompts, replies):
    return [1.0, 2.0]

def waits_inside(prompts, replies):
    return waits(prompts, replies)

def one(prompts):
    return [1.0]

def changes(prompts, replies):
    replies.clear()
    prompts.append("more")
    return [1.0, 2.0]

class Scorer:
    def __init__(self, size):
        self.size = size

    def __call__(self, prompts, replies):
        return [self.size] * len(replies)

scorer = Scorer(3)
size = 3
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the user's modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in {
        "users": MODULE,
        "broken": "def f(:\n",
        "leaves": "import sys\nsys.exit(7)\n",
        "raising": "x = 1\nraise ValueError('at import')\n",
        "importing": "import absent_for_sure\n",
        "statistics": "def score(prompts, replies): return []\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("users", "broken", "leaves", "raising", "importing"):
        sys.modules.pop(name, None)


# ------------------------------------------------------------------ finding
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("users", "is not module:function, as in rewards:score for 'def score' in rewards.py."),
        ("users:", "is not module:function"),
        (":raises", "is not module:function"),
        ("users:a:b", "is not module:function"),
        ("..users:raises", "is not module:function"),
        ("users\0:raises", "is not module:function"),
        ("users.py:raises", "names a file; name the module, as in users:raises."),
        ("./my/users.py:raises", "names a file; name the module, as in my.users:raises."),
        ("../users.py:raises", "names a file; name the module, as in users:raises."),
        ("usres:raises", "on Python's path; did you mean 'users'?"),
        ("nowhere.at.all:raises", "cannot be imported: there is no module 'nowhere' in"),
        ("users:riases", "/users.py) has no 'riases'; did you mean 'raises'?"),
        ("users:size", "is not module:function, since it is of type int."),
        ("users:Scorer", "is a class; name a function, or an instance with __call__."),
        ("users:waits", "is an async function, which returns no scores; write it with 'def' alone."),
        ("users:one", "takes (prompts); it is called with two arguments, prompts and replies."),
        ("math:sqrt", "takes (x, /); it is called with two arguments"),
        ("broken:f", "cannot be imported: raised SyntaxError: "),
        ("leaves:f", "cannot be imported: called sys.exit(7) (leaves.py line 2)."),
        ("raising:f", "cannot be imported: raised ValueError: at import (raising.py line 2)."),
        ("importing:f", "raised ModuleNotFoundError: No module named 'absent_for_sure' (importing.py line 1)."),
        ("statistics:score", "which hides your statistics.py; give your file another name."),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_training(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_scores(name, "reward.source")
    assert str(caught.value).startswith(f"reward.source: {name!r} ")
    assert words in str(caught.value)


def test_functions_and_instances_are_found() -> None:
    assert load_scores("users:scorer", "gold")(PROMPTS, TEXTS) == [3, 3]
    assert load_scores("users:raises", "gold").__name__ == "raises"
    assert load_function("users:Scorer", "environment").__name__ == "Scorer"  # a class, where the caller wants one


def test_a_missing_module_is_found_without_running_code() -> None:
    require_module("raising:score", "gold")
    with pytest.raises(
        UserError, match=r"^gold: 'nowhere\.at:all' cannot be imported: there is no module 'nowhere' in"
    ):
        require_module("nowhere.at:all", "gold")


def test_a_function_is_told_from_a_path() -> None:
    assert is_function("accord.data.demo:gold_scores")
    assert is_function("my/rewards.py:score")  # refused when it is loaded, with the right way to write it
    assert not any(map(is_function, ["sft", "C:/models/sft", "./a:b/c"]))


# ------------------------------------------------------------------ calling
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "(2 replies, the first 'first') raised ZeroDivisionError: division by zero (users.py line 7)."),
        ("far_below", "raised ValueError: cannot reshape array of size 2 into shape (5,) (users.py line 10)."),
        ("exits", "called sys.exit(0) (users.py line 13)."),
        ("odd", "(2 replies, the first 'first') raised Odd (users.py line 20)."),
        ("endless", "returned more than 2 scores for 2 replies; it must return one for each."),
        ("fails_later", "raised ValueError: second (users.py line 28)."),
        ("waits_inside", "returned a value of type coroutine"),
    ],
)
def test_what_a_function_raises_is_a_sentence_with_its_line(name: str, words: str) -> None:
    function = load_scores(f"users:{name}", "gold")
    with pytest.raises(UserError) as caught:
        scores_of(function, f"users:{name}", PROMPTS, TEXTS)
    assert str(caught.value).startswith(f"the function users:{name} ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("None", "returned None; it must return a list with one number for each reply."),
        ("1.0", "returned a value of type float; it must return a list"),
        ("'ab'", "returned a value of type str"),
        ("{0: 1.0, 1: 2.0}", "returned a value of type dict"),
        ("{1.0, 2.0}", "returned a value of type set"),
        ("numpy.zeros((2, 2))", "returned a value of type ndarray and shape (2, 2)"),
        ("torch.zeros(2, 1)", "returned a value of type Tensor and shape (2, 1)"),
        ("torch.tensor(1.0)", "returned a value of type Tensor and shape ()"),
        ("[1.0]", "returned 1 scores for 2 replies; it must return one for each."),
        ("[1.0, 2.0, 3.0]", "returned more than 2 scores for 2 replies"),
        ("[1.0, None]", f"the score of reply 1 ({TEXTS[1][:60]!r}…) is None; it must be a number."),
        ("[[1.0], [2.0]]", "the score of reply 0 ('first') is a value of type list"),
        ("[torch.zeros(1), 2.0]", "the score of reply 0 ('first') is a value of type Tensor and shape (1,)"),
        ("['1.0', 2.0]", "the score of reply 0 ('first') is a value of type str; it must be a number."),
        ("[1j, 2.0]", "the score of reply 0 ('first') is a value of type complex; it must be a number."),
        ("[1.0, float('nan')]", "is nan; it must be finite, and at most 1e+18."),
        ("[float('-inf'), 1.0]", "the score of reply 0 ('first') is -inf; it must be finite, and at most 1e+18."),
        ("[10**400, 1.0]", "the score of reply 0 ('first') is inf; it must be finite, and at most 1e+18."),
        ("[1e39, 1.0]", "the score of reply 0 ('first') is 1e+39; it must be finite, and at most 1e+18."),
        ("[True, False]", "is True, a boolean; return a number, such as 1.0 or 0.0."),
        ("numpy.array([True, False])", "is True, a boolean"),
        ("[torch.tensor(True), 1.0]", "a boolean; return a number"),
    ],
)
def test_what_is_no_number_for_each_reply_is_refused(returned: str, words: str) -> None:
    names = {"numpy": importlib.import_module("numpy"), "torch": importlib.import_module("torch")}
    with pytest.raises(UserError) as caught:
        scores_of(lambda _prompts, _replies: eval(returned, names), "brief", PROMPTS, TEXTS)
    assert str(caught.value).startswith("the function brief")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "returned", ["[1, 2.5]", "(1, 2.5)", "numpy.array([1, 2.5])", "torch.tensor([1, 2.5])", "iter([1, 2.5])"]
)
def test_lists_arrays_and_iterators_of_numbers_are_scores(returned: str) -> None:
    names = {"numpy": importlib.import_module("numpy"), "torch": importlib.import_module("torch")}
    assert scores_of(lambda _prompts, _replies: eval(returned, names), "brief", PROMPTS, TEXTS) == [1.0, 2.5]


def test_scores_are_float32_and_no_reply_needs_no_call() -> None:
    assert scores_of(lambda _prompts, _replies: [0.1, 0], "brief", PROMPTS, TEXTS) == [0.10000000149011612, 0.0]
    assert scores_of(lambda _prompts, _replies: 1 / 0, "brief", [], []) == []


def test_a_function_cannot_change_the_replies() -> None:
    prompts, texts = list(PROMPTS), list(TEXTS)
    assert scores_of(load_scores("users:changes", "gold"), "users:changes", prompts, texts) == [1.0, 2.0]
    assert (prompts, texts) == (PROMPTS, TEXTS)


def test_the_log_gets_the_cause_and_our_own_errors_pass() -> None:
    with pytest.raises(UserError) as caught:
        scores_of(load_scores("users:raises", "gold"), "users:raises", PROMPTS, TEXTS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    for error in (UserError("install vaderSentiment"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as passed, user_code("the environment X"):
            raise error
        assert passed.value is error
