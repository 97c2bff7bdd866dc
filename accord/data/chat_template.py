"""Chat templates: jinja2 templates from a model's folder that render messages in the model's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from accord.data.rows import Message
from accord.errors import UserError

if TYPE_CHECKING:
    import jinja2


def render_template(
    template: str, specials: Mapping[str, str], messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    """The text of ``messages``; ``specials`` are the special tokens that the template may refer to, such as ``eos_token``.

    Raises UserError where the template is broken or rejects the messages.
    """
    import jinja2

    try:
        return str(
            _compiled(template).render(
                messages=[dict(m) for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **specials,
            )
        )
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is broken at line {error.lineno}: {error.message}") from None
    except (jinja2.TemplateError, TypeError) as error:
        roles = ", ".join(str(m.get("role")) for m in messages) or "none"
        raise UserError(f"the chat template rejects messages with roles {roles}: {error}") from None


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
    """Sandboxed, since templates are not trusted, with the functions that they expect."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %} … {% endgeneration %}`` marks the assistant's content; it is found without it."""

        tags = {"generation"}  # noqa: RUF012  (jinja2's interface)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json  # without jinja2's HTML escapes
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
