"""jinja2's sandbox with an end: a chat template comes with a model, so it may be malicious or simply wrong.

The sandbox keeps a template from Python's attributes; it does not keep it from looping, or from making text that fills
the memory.  Here every loop step, call, filter and product is counted, and the rendering ends when there are too many.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from jinja2 import nodes, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 100_000
MAX_CHARACTERS = 100_000_000
MAX_SECONDS = 2.0
"""Of the processor, so that a busy machine does not matter."""
STEPS_BETWEEN_LOOKS = 64
"""At the time, which costs more than most steps; ordinary templates take fewer steps than this."""
MAX_NUMBER = 1_000_000
"""A width, a precision or a count that a template gives to a filter or method."""
MAX_BITS = 4096
T = TypeVar("T")
_WIDTH = re.compile(r"\d{6,}|\*")


class Exceeded(Exception):
    """The template loops or produces text without an end in sight."""


@dataclass(slots=True)
class Budget:
    """What one rendering has used."""

    steps: int = 0
    characters: int = 0
    since: float = 0.0
    """The processor's time at the first look at it."""

    def step(self) -> None:
        """Counts a loop step or a call of a macro."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Exceeded(f"it takes more than {MAX_STEPS:,} steps")
        if self.steps % STEPS_BETWEEN_LOOKS:
            return
        self.since = self.since or time.thread_time()
        if time.thread_time() - self.since > MAX_SECONDS:
            raise Exceeded(f"it takes more than {MAX_SECONDS:.0f} seconds")

    def produce(self, size: int) -> None:
        """Counts characters or items that the template is about to make, or has made."""
        self.characters += size
        if self.characters > MAX_CHARACTERS:
            raise Exceeded(f"it makes more than {MAX_CHARACTERS:,} characters")


_budget: ContextVar[Budget] = ContextVar("budget")


def within_budget(render: Callable[[], T]) -> T:
    """Renders or compiles with a new budget.  Raises Exceeded."""
    token = _budget.set(Budget())
    try:
        return render()
    finally:
        _budget.reset(token)


def _used() -> Budget:
    found = _budget.get(None)
    if found is None:  # while a template is compiled: constants are computed then
        found = Budget()
        _budget.set(found)
    return found


def _size(value: object) -> int:
    return len(value) if isinstance(value, (str, list, tuple, Mapping)) else 0


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or method whose numbers are bounded and whose result is counted."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        _require_small([*args, *named.values()])
        result = function(*args, **named)
        _used().produce(_size(result))
        return result

    return call


def _require_small(args: list[Any]) -> None:
    for arg in args:
        if isinstance(arg, int) and abs(arg) > MAX_NUMBER:
            raise Exceeded(f"it uses the number {'…' if arg.bit_length() > MAX_BITS else arg} as a width or count")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates end."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_count_output)
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters["format"] = _format
        self.filters["replace"] = _replace
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]

    def count_step(self, size: int) -> None:
        """Called by the compiled template at each step of a loop or call of a macro; ``size``: of the plain text in it."""
        budget = _used()
        budget.step()
        budget.produce(size)

    def counted(self, value: Any) -> Any:
        """Called by the compiled template with the result of each concatenation."""
        _used().produce(_size(value))
        return value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for found in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
            node = cast(nodes.For, found)
            size = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            count = nodes.Call(nodes.EnvironmentAttribute("count_step"), [nodes.Const(size)], [], None, None)
            node.body.insert(0, nodes.ExprStmt(count))
            node.body[0].set_lineno(node.lineno)
            node.body[0].set_environment(self)
        _wrap_concatenations(tree, self)
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **named: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)  # named: the template's variables, for functions that take its context
        budget = _used()
        budget.step()
        _require_small([*args, *named.values()])
        if isinstance(owner, str) and __obj.__name__ == "replace":
            _count_replacement(owner, *args)
        elif isinstance(owner, str) and __obj.__name__ == "join":
            budget.produce(len(owner) * max(map(_size, args), default=0))
        result = super().call(__context, __obj, *args, **named)
        budget.produce(_size(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if (text := getattr(value, "__self__", None)) is not None and isinstance(text, str):
            _require_widths(text)
        return super().wrap_str_format(value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _require_widths(left)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = (
                left.bit_length() * max(abs(right), 1) if operator == "**" else left.bit_length() + right.bit_length()
            )
            if bits > MAX_BITS:
                raise Exceeded("it computes a number of thousands of digits")
        elif operator == "*":
            sizes = [max(_size(x), x if isinstance(x, int) else 0, 1) for x in (left, right)]
            _used().produce(sizes[0] * sizes[1])
        result = super().call_binop(context, operator, left, right)
        _used().produce(_size(result))
        return result


def _wrap_concatenations(node: nodes.Node, environment: Sandbox) -> None:
    for key, value in list(node.iter_fields()):
        items = value if isinstance(value, list) else [value]
        for i, item in enumerate(items):
            if isinstance(item, nodes.Node):
                _wrap_concatenations(item, environment)
            if isinstance(item, nodes.Concat):
                made = nodes.Call(nodes.EnvironmentAttribute("counted"), [item], [], None, None)
                made.set_lineno(item.lineno)
                made.set_environment(environment)
                items[i] = made
        setattr(node, key, items if isinstance(value, list) else items[0])


def _count_output(value: Any) -> Any:
    _used().produce(_size(value))
    return value


def _require_widths(text: str) -> None:
    if _WIDTH.search(text):
        raise Exceeded("it formats text to a width of more than 99,999")


def _format(value: Any, *args: Any, **named: Any) -> str:
    from jinja2.filters import do_format

    _require_widths(str(value))
    return _bounded(do_format)(value, *args, **named)  # type: ignore[no-any-return]


@pass_eval_context
def _replace(context: Any, text: Any, *args: Any, **named: Any) -> str:
    from jinja2.filters import do_replace

    _count_replacement(str(text), *args, *named.values())
    return do_replace(context, str(text), *args, **named)


def _count_replacement(text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    _used().produce(len(text) + text.count(str(old)) * len(str(new)))


class Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` marks the assistant's content; it is found without it."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's interface)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def make_sandbox() -> Sandbox:
    """The environment of a chat template, with the block settings that transformers uses."""
    return Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
