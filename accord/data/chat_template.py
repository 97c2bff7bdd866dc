"""Chat templates: jinja2 templates from a model's folder that render messages in the model's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from accord.data.rows import Message
from accord.errors import UserError
from accord.io.readers import shorten

if TYPE_CHECKING:
    import jinja2

MAX_SOURCE = 1_000_000
MAX_INDENT = 100


def render_template(
    template: str, specials: Mapping[str, str], messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    """The text of ``messages``; ``specials`` are the special tokens that the template may refer to, such as ``eos_token``.

    Raises UserError where the template is broken or rejects the messages.
    """
    import jinja2

    from accord.data.template_sandbox import Exceeded, within_budget

    compiled = _compiled(template)
    values = {"messages": [dict(m) for m in messages], "tools": None, "documents": None, **specials}
    try:
        text = within_budget(lambda: str(compiled.render(add_generation_prompt=add_generation_prompt, **values)))
        text.isascii() or text.encode("utf-8")
        return text
    except Exceeded as error:
        raise UserError(f"the chat template does not end{_line(error)}: {error}; correct the template") from None
    except jinja2.TemplateRuntimeError as error:
        raise UserError(f"the chat template fails{_line(error)}: {error}; correct the template") from None
    except (jinja2.TemplateError, TypeError) as error:
        roles = shorten(", ".join(str(m.get("role")) for m in messages) or "none")
        raise UserError(f"the chat template rejects messages with roles {roles}: {shorten(str(error), 400)}") from None
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
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    if not isinstance(template, str) or len(template) > MAX_SOURCE:
        raise UserError(f"the chat template is not a text of at most {MAX_SOURCE:,} characters")
    environment = make_sandbox()
    environment.filters["tojson"] = to_json  # without jinja2's HTML escapes
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return within_budget(lambda: environment.from_string(template))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is broken at line {error.lineno}: {error.message}") from None
    except (Exceeded, jinja2.TemplateError, TypeError, SyntaxError, *_FAULTS) as error:
        raise UserError(f"the chat template cannot be compiled: {shorten(str(error), 400)}") from None
