"""Functions of the user, named as ``module:function``: found, checked, and called so that every failure is one sentence.

Loads no torch.  A user's code may raise anything, also ``SystemExit``, and return anything.
"""

from __future__ import annotations

import ctypes
import difflib
import importlib
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from accord.errors import Interrupted, UserError

TextScores = Callable[[list[str], list[str]], Any]
"""A function of prompts and replies that returns one number for each reply."""

LARGEST_SCORE = 1e18
"""The squares of larger scores overflow in float32."""
_PARAMETERS = ("prompts", "replies")


# ------------------------------------------------------------------ finding
def is_function(value: str) -> bool:
    """Whether a setting is meant as ``module:function``, perhaps with a file in place of the module."""
    module, colon, _ = value.partition(":")
    return bool(colon) and ("/" not in value or module.endswith(".py"))


def load_scores(name: str, key: str) -> TextScores:
    """A reward, an annotator or a gold reward: ``module:function`` of prompts and replies.

    Raises UserError naming ``key`` where ``load_function`` does, for a class, an async function, and a function that
    cannot be called with two arguments.
    """
    function = load_function(name, key)
    if inspect.isclass(function):
        raise UserError(f"{key}: {name!r} is a class; name a function, or an instance with __call__.")
    if any(map(_is_async, (function, getattr(function, "__call__", None)))):  # noqa: B004 (the method itself is inspected)
        raise UserError(f"{key}: {name!r} is an async function, which returns no scores; write it with 'def' alone.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions in C have none
        return function
    try:
        signature.bind(*_PARAMETERS)
    except TypeError:
        raise UserError(
            f"{key}: {name!r} takes {signature}; it is called with two arguments, {' and '.join(_PARAMETERS)}."
        ) from None
    return function


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def load_function(name: str, key: str) -> Callable[..., Any]:
    """What ``module:function`` names, imported; the working directory is on the path, after Python's own modules.

    Raises UserError naming ``key`` where the module is missing or fails, or has no such function.
    """
    module, function = _parts(name, key)
    _search_working_directory()
    found = getattr(_imported(module, name, key), function, None)
    if found is None:
        raise UserError(f"{key}: {name!r} cannot be imported: {_absence(module, function)}")
    if not callable(found):
        raise UserError(f"{key}: {name!r} is not {_form(key)}, since it is of type {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def require_module(name: str, key: str) -> None:
    """Raises UserError where the module (the top-level package) of ``module:function`` does not exist; runs no code."""
    package = _parts(name, key)[0].partition(".")[0]
    _search_working_directory()
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise UserError(f"{key}: {name!r} cannot be imported: {_missing(package)}")


def _parts(name: str, key: str) -> tuple[str, str]:
    """The dotted module and the function."""
    module, _, function = name.partition(":")
    if module.endswith(".py") or "/" in module:
        dotted = module.removesuffix(".py").lstrip("./").replace("/", ".")
        raise UserError(f"{key}: {name!r} names a file; name the module, as in {dotted}:{function or 'function'}.")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        example = "rewards:score for 'def score' in rewards.py"
        if key == "environment":
            example = "tasks:Maze for 'class Maze' in tasks.py"
        raise UserError(f"{key}: {name!r} is not {_form(key)}, as in {example}.")
    return module, function


def _form(key: str) -> str:
    return "module:Class" if key == "environment" else "module:function"


def _imported(module: str, name: str, key: str) -> Any:
    try:
        return importlib.import_module(module)
    except (KeyboardInterrupt, UserError):
        raise
    except ModuleNotFoundError as error:
        absent = error.name or module
        if absent != module and not module.startswith(f"{absent}."):  # an import inside the module
            raise UserError(f"{key}: {name!r} cannot be imported: {_description(error, module)}.") from error
        raise UserError(f"{key}: {name!r} cannot be imported: {_missing(absent)}") from error
    except BaseException as error:  # a module may raise anything, also SystemExit
        raise UserError(f"{key}: {name!r} cannot be imported: {_description(error, module)}.") from error


def _missing(module: str) -> str:
    parent = Path(*module.split(".")[:-1])
    known = [path.stem for path in parent.glob("*.py")] if parent.is_dir() else []
    near = difflib.get_close_matches(module.rpartition(".")[2], known, 1)
    hint = f"did you mean {'.'.join([*module.split('.')[:-1], near[0]])!r}?" if near else ""
    return f"there is no module {module!r} in {_working_directory()} or on Python's path{'; ' + hint if hint else '.'}"


def _absence(module: str, function: str) -> str:
    loaded = sys.modules[module]
    file = getattr(loaded, "__file__", None) or "built into Python"
    known = [name for name, value in vars(loaded).items() if callable(value) and not name.startswith("_")]
    near = difflib.get_close_matches(function, known, 1)
    hidden = Path(*module.split(".")).with_suffix(".py")
    if hidden.is_file() and not (Path(file).is_file() and hidden.samefile(file)):
        return f"the module {module!r} is {file}, which hides your {hidden}; give your file another name."
    return f"the module {module!r} ({file}) has no {function!r}{f'; did you mean {near[0]!r}?' if near else '.'}"


def _search_working_directory() -> None:
    here = _working_directory()
    if here and str(here) not in sys.path:
        sys.path.append(str(here))


def _working_directory() -> Path | None:
    """None where it has been deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


# ------------------------------------------------------------------ calling
@contextmanager
def user_code(what: str, source: str = "") -> Iterator[None]:
    """Turns whatever a user's code raises in the block into a UserError that starts with ``what``.

    ``source`` is its module or file, to find the line.  The original error is the cause, so that the log has its traceback.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted, UserError):
        raise
    except BaseException as error:  # a user's code may raise anything, also SystemExit
        raise UserError(f"{what} {_description(error, source)}.") from error


def scores_of(function: TextScores, name: str, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """One finite number for each text, rounded to float32, from a user's function, which gets copies of the lists.

    Raises UserError naming the function, and where it can be said the reply, for every other outcome.
    """
    if not texts:
        return []
    subject = f"the function {name} ({len(texts)} replies, the first {_beginning(texts[0])})"
    with user_code(subject, getattr(function, "__module__", None) or ""):
        found = function(list(prompts), list(texts))
        values = _as_list(found, len(texts))
    if values is None:
        raise UserError(f"{subject} returned {_kind(found)}; it must return a list with one number for each reply.")
    if len(values) != len(texts):
        more = "more than " * (len(values) > len(texts))
        count = f"{more}{min(len(values), len(texts))}"
        raise UserError(f"{subject} returned {count} scores for {len(texts)} replies; it must return one for each.")
    return [_score(value, f"the function {name}: the score of reply {i}", texts[i]) for i, value in enumerate(values)]


def _as_list(found: Any, expected: int) -> list[Any] | None:
    """The items of a list, array or iterator, at most one more than expected; None for what is no list of numbers."""
    if inspect.iscoroutine(found):
        found.close()  # else Python warns that nobody waited for it
    if isinstance(found, (str, bytes, dict, set, frozenset)) or not hasattr(type(found), "__iter__"):
        return None
    if len(getattr(found, "shape", (0,))) != 1:  # an array or tensor of no or of several dimensions
        return None
    if hasattr(found, "tolist"):
        return list(found.tolist())
    return list(found) if hasattr(found, "__len__") else list(islice(found, expected + 1))


def _score(value: Any, what: str, text: str) -> float:
    where = f"({_beginning(text)})"
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        raise UserError(f"{what} {where} is {value}, a boolean; return a number, such as 1.0 or 0.0.")
    if isinstance(value, (str, bytes)) or len(getattr(value, "shape", ())):
        raise UserError(f"{what} {where} is {_kind(value)}; it must be a number.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except Exception:  # of the value's own __float__
        raise UserError(f"{what} {where} is {_kind(value)}; it must be a number.") from None
    if not abs(number) <= LARGEST_SCORE:
        raise UserError(f"{what} {where} is {number}; it must be finite, and at most {LARGEST_SCORE:g}.")
    return ctypes.c_float(number).value


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    kind = f"a value of type {type(value).__name__}"
    return f"{kind} and shape {tuple(shape)}" if shape is not None else kind


def _beginning(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}…"


def _description(error: BaseException, source: str) -> str:
    """``raised ValueError: words (file line 3)``, of the last line in the user's own file."""
    try:
        words = " ".join(str(error).split())
    except Exception:  # an exception may have a __str__ that raises
        words = ""
    if isinstance(error, SystemExit):
        words = f"called sys.exit({error.code!r})"
    else:
        words = f"raised {type(error).__name__}{': ' if words else ''}{words[:300]}"
    return words + _place(error, source)


def _place(error: BaseException, source: str) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({_short(error.filename)} line {error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    file = getattr(sys.modules.get(source), "__file__", None)
    package = os.path.dirname(os.path.dirname(__file__)) + os.sep
    frames = [f for f in frames if not f.filename.startswith((package, importlib.__file__))]
    here = [f for f in frames if f.filename == file] or [f for f in frames if _short(f.filename) != f.filename]
    last = (here or frames)[-1:]
    return f" ({_short(last[0].filename)} line {last[0].lineno})" if last else ""


def _short(file: str) -> str:
    """A path relative to the working directory where it is below it."""
    here = _working_directory()
    return str(Path(file).relative_to(here)) if here and Path(file).is_relative_to(here) else file
