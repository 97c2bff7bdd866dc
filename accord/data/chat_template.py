"""Chat templates: jinja2 templates from a model's folder that render messages in the model's format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date, datetime, time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from accord.config.common import TEMPLATE_DATE
from accord.data.control_tokens import MARK
from accord.data.turns import NOTHING, Message
from accord.errors import UserError
from accord.io.readers import shorten

if TYPE_CHECKING:
    import jinja2

MAX_SOURCE = 1_000_000
MAX_INDENT = 100
_DAY = date.fromisoformat(TEMPLATE_DATE)
_date: ContextVar[date] = ContextVar("template_date", default=_DAY)


@contextmanager
def dated(day: str) -> Iterator[None]:
    """Templates rendered in the block that write a date write ``day`` (YYYY-MM-DD): one date for a whole run."""
    token = _date.set(date.fromisoformat(day))
    try:
        yield
    finally:
        _date.reset(token)


def render_template(
    template: str,
    specials: Mapping[str, str],
    messages: Sequence[Message],
    add_generation_prompt: bool,
    inputs: Mapping[str, Any] = NOTHING,
) -> str:
    """The text of ``messages``; ``specials`` are the special tokens that the template may refer to, such as ``eos_token``,
    and ``inputs`` what it may read besides: tools, documents, switches.

    Raises UserError where the template is broken or rejects the messages.
    """
    import jinja2

    from accord.data.template_sandbox import Exceeded, within_budget

    compiled = _compiled(template)
    values = {
        **{"tools": None, "documents": None, **inputs},
        **{"messages": [dict(m) for m in messages], "add_generation_prompt": add_generation_prompt, **specials},
    }
    try:
        text = within_budget(lambda: str(compiled.render(**values)))
        text.isascii() or text.encode("utf-8")
        return text
    except Exceeded as error:
        raise UserError(f"the chat template does not end{_line(error)}: {error}; correct the template") from None
    except jinja2.TemplateRuntimeError as error:
        raise UserError(f"the chat template fails{_line(error)}: {error}; correct the template") from None
    except (jinja2.TemplateError, TypeError) as error:
        roles = shorten(", ".join(str(m.get("role")) for m in messages) or "none")
        raise UserError(f"the chat template rejects messages with roles {roles}: {shorten(str(error), 400)}") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(
            f"the text holds {half}, half of a surrogate pair, which is not a character; remove it"
        ) from None
    except _FAULTS as error:
        why = f"{type(error).__name__}: {shorten(str(error), 400)}"
        raise UserError(f"the chat template fails{_line(error)}: {why}; correct the template") from None


_FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, ValueError, NotImplementedError)
"""What the expressions of a template may raise."""


def _line(error: BaseException) -> str:
    """`` at line 3``: the last place in a template on the way to an error."""
    trace, found = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            found = trace.tb_lineno
        trace = trace.tb_next
    return f" at line {found}" if found else ""


def sample_reply(template: str, specials: Mapping[str, str]) -> tuple[str, int] | None:
    """A rendered exchange, and the index of the character after the assistant's content.

    None where the exchange does not start with the prompt, or does not contain the content unchanged.
    """
    question: list[Message] = [{"role": "user", "content": "ask"}]
    answer = "reply"
    head = render_template(template, specials, question, True)
    full = render_template(template, specials, [*question, {"role": "assistant", "content": answer}], False)
    content = full.find(answer, len(head))
    if not full.startswith(head) or content < 0:
        return None
    return full, content + len(answer)


_ESCAPED_STAND_IN = re.compile(rf"\\u{ord(MARK):04x}\\ud[b][0-9a-f]{{2}}\\ud[c-f][0-9a-f]{{2}}")
"""A stand-in (``accord.data.control_tokens``) in JSON that is ASCII only."""


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    """Sandboxed, since templates are not trusted, with the functions that they expect.  Raises UserError."""
    import jinja2

    from accord.data.template_sandbox import Exceeded, make_sandbox, within_budget

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        if isinstance(indent, int) and indent > MAX_INDENT:
            raise ValueError(f"tojson with an indent of {indent}")
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return _ESCAPED_STAND_IN.sub(lambda match: json.loads(f'"{match[0]}"'), text) if ensure_ascii else text

    if not isinstance(template, str) or len(template) > MAX_SOURCE:
        raise UserError(f"the chat template is not a text of at most {MAX_SOURCE:,} characters")
    environment = make_sandbox()
    environment.filters["tojson"] = to_json  # without jinja2's HTML escapes
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.combine(_date.get(), time()).strftime(form)
    try:
        return within_budget(lambda: environment.from_string(template))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is broken at line {error.lineno}: {error.message}") from None
    except (Exceeded, jinja2.TemplateError, TypeError, SyntaxError, *_FAULTS) as error:
        raise UserError(f"the chat template cannot be compiled: {shorten(str(error), 400)}") from None
