"""The description of a stage kind."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from accord.config.common import Stage
    from accord.config.variants import Variants

DataFile = Literal[
    "base",
    "sft",
    "preferences",
    "prompts",
    "samples",
    "ledger",
    "heldout_base",
    "heldout_sft",
    "heldout_preferences",
    "heldout_prompts",
]
Sort = Literal["model", "reward", DataFile]


@dataclass(frozen=True, slots=True)
class Reference:
    """A setting that names the output of another stage, or a path."""

    key: str
    """Dotted key; ``*`` stands for every item of a tuple or mapping."""
    sort: Sort
    unless: str = ""
    """Ignored where this setting is not empty."""
    only_with: str = ""
    """Ignored where this setting is empty."""
    beside: str = ""
    """Where its own setting is empty: the same stage or folder as this one names, if it has a file of this sort."""


@dataclass(frozen=True, slots=True)
class StageKind:
    """A kind of stage; its settings and its function are imported on first use."""

    name: str
    help: str
    """The line in ``accord --help``."""
    settings_path: str
    """``module:name`` of its config class or of its variants."""
    function_path: str
    """``module:name`` of a function of a config and a run that returns the last metrics."""
    version: int
    """Raised when a change of the code changes results, so that finished stages run again."""
    next_step: str | Callable[[Any], str]
    """What to do next, with ``{name}``, ``{folder}`` and ``{logs}``; a function where that depends on the config."""
    references: tuple[Reference, ...] = ()
    files: tuple[str, ...] = ()
    """Settings that may name a file or folder, whose content is then part of the stage's key."""
    functions: tuple[str, ...] = ()
    """Settings that are always ``module:function``; those among ``references`` may be."""

    @property
    def settings(self) -> type[Stage] | Variants[Stage]:
        """The class of its config, or its variants."""
        loaded: type[Stage] | Variants[Stage] = _loaded(self.settings_path)
        return loaded

    @property
    def function(self) -> Callable[[Any, Any], Mapping[str, float]]:
        """The function that runs it."""
        loaded: Callable[[Any, Any], Mapping[str, float]] = _loaded(self.function_path)
        return loaded

    def call(self, config: Stage, run: Any) -> Mapping[str, float]:
        """Calls the function; chat templates that write a date write the config's in the meantime."""
        from accord.config.common import TEMPLATE_DATE, DatedStage
        from accord.data.chat_template import dated

        with dated(config.template_date if isinstance(config, DatedStage) else TEMPLATE_DATE):
            return self.function(config, run)

    def next_words(self, config: Stage) -> str:
        """What to run or look at next, after a stage with this config."""
        text = self.next_step if isinstance(self.next_step, str) else self.next_step(config)
        name = config.name or self.name
        return text.format(name=name, folder=f"{config.out}/{name}", logs=f"{config.logs}/{name}")


def _loaded(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
