"""Parses command lines: every mistake is one sentence that says what to type.

Neither torch nor the settings of the stages are loaded for a command line without mistakes.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from accord.errors import UserError
from accord.io.installation import located
from accord.stage_kinds.table import STAGE_KINDS

DASHES = "‐‑‒–—―−﹣－"
QUOTES = "“”„‟‘’‚‛"
WITHOUT_OVERRIDES = ("chat", "data", "models", "feedback", "label", "plot", "init")
OWN_WORD_OPTIONS = ("--config", "--set", "--on")  # the word after these is theirs, whatever it looks like


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are UserErrors that say what to type."""

    @property
    def where(self) -> str:
        """The command, before a message; empty for ``accord`` itself."""
        command = self.prog.removeprefix("accord").strip()
        return f"{command}: " if command else ""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        words = message.removeprefix("argument ").rstrip(".")
        required = "the following arguments are required: "
        if words.startswith(required):
            needed = [a for a in self._actions if not a.option_strings and a.nargs not in ("?", "*")]
            needed += [a for a in self._actions if a.option_strings and a.required]
            form = " ".join([self.prog, *(" ".join([*a.option_strings[-1:], _name(a)]) for a in needed)])
            missing = " and ".join(words.removeprefix(required).split(", "))
            raise UserError(f"{self.where}{missing} {'are' if ' and ' in missing else 'is'} missing; type {form}.")
        if found := re.fullmatch(r"(.+): invalid (\w+) value: (.*)", words, re.DOTALL):
            kind = {"int": "a whole number", "float": "a number"}.get(found[2], found[2])
            words = f"{found[1]}: expected {kind}, found {found[3]}"
        raise UserError(f"{self.where}{words}; see '{self.prog} --help'.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raises UserError where a value is not one of an action's choices, with the nearest one."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, 1)
        what = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest.upper())
        if what == "COMMAND":
            hint = f"did you mean {near[0]!r}?" if near else f"see '{self.prog} --help'."
            raise UserError(
                f"{self.where}no command {value!r}; {'type accord --version.' if value == 'version' else hint}"
            )
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UserError(f"{self.where}{what} is one of {', '.join(choices)}, not {value!r}{hint}")


# ------------------------------------------------------------------ a whole command line
def parse_words(top: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line.  ``key=value`` may be anywhere in it, which argparse does not support.

    Raises UserError for every mistake; SystemExit after argparse's own ``--help``.
    """
    words = list(argv)
    _refuse_typography(words)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        raise UserError(
            f"{words[0]!r}: the command comes first, as in 'accord sft {shlex.join(words)}'; see 'accord --help'."
        )
    overrides: list[str] = []
    rest = words
    if sum(word.partition("=")[0] == "--config" for word in words) > 1:
        raise UserError("--config: given twice; a stage reads one file.")
    if words[:1] and words[0] not in WITHOUT_OVERRIDES:
        _refuse_spaces(words)
        rest, overrides = _without_overrides(words)
    options, unknown = top.parse_known_args(rest)
    overrides += getattr(options, "set", [])
    options.overrides = [*getattr(options, "overrides", []), *overrides]
    if unknown:
        raise UserError(_unknown_option(top, words, unknown[0]))
    if getattr(options, "stage", "").endswith((".yaml", ".yml")) and not options.pipeline:
        raise UserError(f"{words[0]}: STAGE is missing; type accord {words[0]} STAGE {shlex.quote(options.stage)}.")
    _refuse_without_folder(getattr(options, "config", None) or getattr(options, "pipeline", None) or "")
    if not getattr(options, "help", False):
        for stray in options.overrides:
            if "=" not in stray:
                raise UserError(_stray_word(options, words, stray))
    return options


def _without_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that argparse reads, and the overrides."""
    rest: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        is_override = "=" in word and not word.startswith("-") and before not in OWN_WORD_OPTIONS
        (overrides if is_override else rest).append(word)
    return rest, overrides


# ------------------------------------------------------------------ what was meant
def _refuse_typography(words: Sequence[str]) -> None:
    """Raises UserError for dashes and quotes that were copied from a web page, and for a zero byte."""
    for word in words:
        if "\0" in word:
            raise UserError(f"{word!r}: holds a zero byte, which no setting and no file name has.")
        if word == "--":
            raise UserError("'--': no command needs it; leave it out.")
        if word and word[0] in DASHES:
            rest = word.lstrip(f"-{DASHES}")
            raise UserError(f"{word!r}: begins with a typographic dash; type {'-' if len(rest) == 1 else '--'}{rest}.")
        if word and (
            word[0] in QUOTES or word[-1] in QUOTES or (("=" in word) and word.partition("=")[2][:1] in [*QUOTES])
        ):
            raise UserError(f"{word!r}: has typographic quotes; type {word.translate({ord(q): None for q in QUOTES})}.")


def _refuse_spaces(words: Sequence[str]) -> None:
    """Raises UserError for spaces around an equals sign."""
    for i, word in enumerate(words):
        before, after = words[i - 1] if i > 1 else "", words[i + 1] if i + 1 < len(words) else ""
        if after and ("=" in after.rstrip("=") or after.startswith("-")):
            after = ""
        if before in OWN_WORD_OPTIONS or word.startswith("-"):
            continue
        if word == "=" or (word.startswith("=") and before and "=" not in before):
            value = word[1:] or after or "VALUE"
            raise UserError(f"{word!r}: a setting has no spaces around '='; type {before or 'KEY'}={value}.")
        if word.endswith("=") and after:
            raise UserError(f"{word!r}: a setting has no spaces around '='; type {word}{after}.")


def _refuse_without_folder(file: str) -> None:
    """Raises UserError for a file that is not here but, by the same name, in the folder of configs."""
    for folder in () if not file or located(file).exists() else (Path("configs"), Path("configs/recipes")):
        if located(folder / Path(file).name).is_file():
            raise UserError(f"{file}: no such config file; type {folder / Path(file).name}.")


def _unknown_option(top: Parser, words: Sequence[str], unknown: str) -> str:
    """What to type instead of an option that the command does not have."""
    command, following = words[0], _following(words, unknown)
    name, _, value = unknown.lstrip("-").partition("=")
    options = [option for action in _actions(top, words) for option in action.option_strings]
    value = value or following or "VALUE"
    if not unknown.startswith("-"):
        option = f"--{name.replace('_', '-')}"
        hint = f"type {option} {value}." if "=" in unknown and option in options else f"see 'accord {command} --help'."
        return f"{command}: {unknown!r} is one word too many; {hint}"
    if name == "set":
        return f"{command}: no option '--set'; type the setting alone: {following or 'KEY=VALUE'}."
    if key := _setting(name.replace("-", "_"), words):
        return f"{unknown.partition('=')[0]} is a setting, not an option; type {key}={value}."
    if near := difflib.get_close_matches(f"--{name}", options, 1):
        return f"{command}: no option {unknown!r}; did you mean {near[0]!r}?"
    if command == "run":
        setting = f"STAGE.{name.replace('-', '_')}={value}"
        return f"run: no option {unknown!r}; the settings of a stage are typed as {setting}."
    return f"{command}: no option {unknown!r}; see 'accord {command} --help'."


def _following(words: Sequence[str], word: str) -> str:
    """The word after another one, unless it is an option."""
    position = words.index(word) if word in words else len(words)
    following = words[position + 1 : position + 2]
    return "" if not following or following[0].startswith("-") else following[0]


def _actions(top: argparse.ArgumentParser, words: Sequence[str]) -> list[argparse.Action]:
    """The options of the command that the first words name."""
    actions = list(top._actions)
    for action in actions:
        if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
            return _actions(action.choices[words[0]], words[1:])
    return actions


def _setting(name: str, words: Sequence[str]) -> str:
    """The dotted setting that a name means in this command; empty where there is none."""
    if words[0] in WITHOUT_OVERRIDES:
        return ""
    from accord.config.load import nearest_key
    from accord.config.section import known_keys

    if words[0] == "run":
        from accord.pipeline.plan import PipelineConfig

        return next((key for key in PipelineConfig.model_fields if key == name and key != "stages"), "")
    kind = STAGE_KINDS.get(next((word for word in words if word in STAGE_KINDS), ""))
    if kind is None:
        return ""
    settings = kind.settings
    classes: Mapping[str, Any] = getattr(settings, "classes", {"": settings})
    for cls in classes.values():
        keys = [*known_keys(cls)]
        sections = {key.rpartition(".")[0] for key in keys}
        if name in keys and name not in sections:
            return name
    return next(filter(None, (nearest_key(name, cls) for cls in classes.values())), "")


def _stray_word(options: argparse.Namespace, words: Sequence[str], stray: str) -> str:
    """What to type instead of a word that is neither an option nor ``key=value``."""
    command = options.command
    if stray == "help":
        return f"'help': type accord {command} --help."
    if stray.endswith((".yaml", ".yml")) or located(stray).is_file():
        return _stray_file(options, words, stray)
    key = _setting(stray, words)
    if key and key.rpartition(".")[2] == stray.rpartition(".")[2]:
        return f"{stray!r}: a setting needs a value; type {key}={_following(words, stray) or 'VALUE'}."
    if command == "run":
        return f"{stray!r}: settings are typed as KEY=VALUE; to run only one stage, type --only {shlex.quote(stray)}."
    if stray in STAGE_KINDS:
        return f"{stray!r}: a command runs one stage; type accord {stray} for that one."
    return f"{stray!r}: write it as key=value, e.g. training.learning_rate=3e-5; see 'accord {command} --help'."


def _stray_file(options: argparse.Namespace, words: Sequence[str], file: str) -> str:
    """What to type where a file stands alone.  Raises UserError where there is no such file."""
    from accord.io.readers import read_yaml

    if options.command not in STAGE_KINDS and options.command != "config":
        return f"{file!r}: accord {options.command} reads one pipeline's file; leave one of them out."
    if options.config:
        return f"{file!r}: a stage reads one file, and --config {options.config} is given; leave one of them out."
    _refuse_without_folder(file)
    values, _ = read_yaml(file)
    if "stages" in values:
        return f"{file!r}: a pipeline, not the config of one stage; type accord run {shlex.quote(file)}."
    return f"{file!r}: type accord {shlex.join(words[: words.index(file)])} --config {shlex.quote(file)}."


def _name(action: argparse.Action) -> str:
    """How help calls an argument's value."""
    return str(action.metavar or action.dest.upper())
