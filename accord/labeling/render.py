"""Replies and guidelines as HTML that cannot act: Markdown without raw HTML, remote images or links of scripts.

Markdown is parsed by markdown-it with HTML disabled, and what it makes passes nh3, which knows an allowed list of tags only.
Characters that do not show or that reorder what surrounds them (controls, ANSI's escape, bidirectional marks, lone
surrogates, line separators) become a visible ``<span class="char">``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MARKDOWN_CHARACTERS = 150_000  # a longer text is shown as it is, without Markdown
TAGS = {
    *("p", "br", "hr", "blockquote", "ul", "ol", "li", "pre", "code", "em", "strong", "s", "a", "span"),
    *("h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES: dict[str, set[str]] = {
    "*": set(),
    "a": {"href"},
    "ol": {"start"},
    "pre": {"class"},
    "span": {"class", "title"},
}
SCHEMES = {"http", "https", "mailto"}
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufdd0-\ufdef\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
"""What does not show by itself, or changes the direction of its surroundings.  Not: tab, newline, joiners (of emoji)."""
OPEN_MARKS = re.compile(r"[*_~\[`(<!]{2000}|(?:[>\-+*] ?){200}")
"""Runs of marks that no author writes and that take a parser of Markdown quadratic time."""


@lru_cache(maxsize=64)
def html_of(text: str) -> str:
    """A text's safe HTML: Markdown where it is of a usual size, else the text itself."""
    if len(text) > MARKDOWN_CHARACTERS or OPEN_MARKS.search(text):
        return plain(text)
    return _clean(_parser().render(text))


def plain(text: str) -> str:
    """A text as it is, in one block that keeps its lines."""
    return f'<pre class="plain">{visible(text)}</pre>'


def visible(text: str) -> str:
    """A text escaped for HTML, with its hidden characters shown by name."""
    return HIDDEN.sub(_shown, escape(text))


def visible_text(text: str) -> str:
    """A short text without markup, with its hidden characters shown by number."""
    return HIDDEN.sub(lambda found: f"U+{ord(found.group()):04X}", text)


def _shown(found: re.Match[str]) -> str:
    number = ord(found.group())
    name = unicodedata.name(found.group(), "")
    sign = chr(0x2400 + number) if number < 0x20 else f"U+{number:04X}"  # the control pictures of Unicode
    return f'<span class="char" title="{f"U+{number:04X} {name}".strip()}">{sign}</span>'


def messages_html(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A conversation as the page shows it."""
    return [{"role": visible_text(str(m["role"])), "html": html_of(str(m["content"]))} for m in messages]


def _clean(html: str) -> str:
    import nh3

    return nh3.clean(
        html.encode("utf-8", "replace").decode(),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes=SCHEMES,
        link_rel="noopener noreferrer",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    parser.validateLink = _is_harmless  # type: ignore[method-assign]
    parser.core.ruler.at("normalize", _normalize)
    parser.core.ruler.push("lower_headings", _lower_headings)
    for name, rule in (
        ("text", lambda self, tokens, i, options, env: visible(tokens[i].content)),
        ("code_inline", lambda self, tokens, i, options, env: f"<code>{visible(tokens[i].content)}</code>"),
        ("code_block", lambda self, tokens, i, options, env: _code(tokens[i].content)),
        ("fence", lambda self, tokens, i, options, env: _code(tokens[i].content)),
        ("image", _image),
    ):
        parser.add_render_rule(name, rule)
    return parser


def _code(text: str) -> str:
    return f'<pre class="code"><code>{visible(text)}</code></pre>\n'


def _image(self: Any, tokens: Sequence[Any], i: int, options: Any, env: Any) -> str:
    """An image as the text that names it: loading it would tell its server who labels what and when."""
    shown = f"![{tokens[i].content}]({tokens[i].attrs.get('src', '')})"
    return f'<span class="image">{visible(shown)}</span>'


def _is_harmless(url: str) -> bool:
    """Whether a link's address is absolute and of a scheme that runs nothing; others stay the text they are."""
    return url.strip().lower().startswith(("http://", "https://", "mailto:"))


def _normalize(state: Any) -> None:
    """Line ends become newlines; a null byte stays, to be shown."""
    state.src = state.src.replace("\r\n", "\n").replace("\r", "\n")


def _lower_headings(state: Any) -> None:
    """The page has the first two levels of headings."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
