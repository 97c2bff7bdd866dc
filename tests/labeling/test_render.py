"""Hostile and ordinary texts as HTML: nothing acts, nothing is lost from sight."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest

pytest.importorskip("nh3", reason="needs the extra feedback")

from accord.labeling.render import html_of, messages_html, plain, visible, visible_text

HARMLESS = {
    *("p", "br", "hr", "blockquote", "ul", "ol", "li", "pre", "code", "em", "strong", "s", "a", "span"),
    *("h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}


class Reader(HTMLParser):
    """The tags, attributes and text of a fragment."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    '[x](https://a.example "\ud800\u202e")',
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:msgbox(1))",
    "[x](//evil.example/)",
    "[x](/owner)",
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    "![x](javascript:alert(1))",
    "![x](https://evil.example/pixel.png)",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    '[x](https://a.example "\\" onmouseover=alert(1) ")',
    '![a" onerror="alert(1)](https://a.example/x.png)',
    "```<script>\n</code></pre><script>alert(1)</script>\n```",
    '```" onclick="alert(1)\nx\n```',
    "`</code><script>alert(1)</script>`",
    "    </pre><script>alert(1)</script>",
    "<style>*{display:none}</style>",
    "<!-- --><script>alert(1)</script>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "|a|b|\n|-|-|\n|<script>alert(1)</script>|x|",
    "<form action=/logout method=post><button>x</button></form>",
    "<base href=https://evil.example>",
    "<meta http-equiv=refresh content=0;url=https://evil.example>",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("show", [html_of, plain])
def test_hostile_text_has_no_element_or_address_that_acts(text: str, show: object) -> None:
    read = Reader(show(text))  # type: ignore[operator]
    assert {tag for tag, _ in read.tags} <= HARMLESS
    for tag, attributes in read.tags:
        assert set(attributes) <= {"href", "rel", "target", "start", "class", "title"}
        assert tag != "a" or attributes.get("href", "https://").startswith(("https://", "http://", "mailto:"))
        assert tag == "a" or "href" not in attributes
    assert "alert(1)" not in str(read.tags)


@pytest.mark.parametrize("text", [t for t in HOSTILE if "<script>" in t and "data:" not in t and "CDATA" not in t])
def test_a_script_is_shown_as_text(text: str) -> None:
    assert "<script>" in Reader(html_of(text)).text or "```<script>" in text


def test_links_of_the_web_and_of_mail_open_apart_and_say_nothing_of_this_page() -> None:
    read = Reader(html_of("[a](https://a.example/?q=1&r=2) <mailto:b@b.example>"))
    links = [attributes for tag, attributes in read.tags if tag == "a"]
    assert [link["href"] for link in links] == ["https://a.example/?q=1&r=2", "mailto:b@b.example"]
    assert all(link["rel"] == "noopener noreferrer" and link["target"] == "_blank" for link in links)


def test_an_image_is_its_text() -> None:
    read = Reader(html_of("see ![a cat](https://a.example/cat.png)"))
    assert "![a cat](https://a.example/cat.png)" in read.text


def test_markdown_is_rendered() -> None:
    text = "# Title\n\n**bold** *it* ~~no~~ `x < y`\n\n3. three\n\n> said\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    html = html_of(f"{text}```python\nif a < b: pass\n```")
    for part in ("<h3>Title</h3>", "<strong>bold</strong>", "<em>it</em>", "<s>no</s>", "<code>x &lt; y</code>"):
        assert part in html
    for part in (
        '<ol start="3">',
        "<blockquote>",
        "<td>2</td>",
        '<pre class="code"><code>if a &lt; b: pass\n</code></pre>',
    ):
        assert part in html


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ("\x00", "\u2400"),
        ("\x1b", "\u241b"),
        ("\x7f", "U+007F"),
        ("\x9b", "U+009B"),
        ("\u202e", "U+202E"),
        ("\u2066", "U+2066"),
        ("\u200b", "U+200B"),
        ("\u2028", "U+2028"),
        ("\ufeff", "U+FEFF"),
        ("\ud83d", "U+D83D"),
        ("\U000e0041", "U+E0041"),
    ],
)
@pytest.mark.parametrize(
    "form", ["a{}b", "`a{}b`", "```\na{}b\n```", "    a{}b", "[a{}b](https://a.example)", "![a{}b](https://a.example)"]
)
def test_what_does_not_show_is_shown_by_name(form: str, hidden: str, shown: str) -> None:
    html = html_of(form.format(hidden))
    assert hidden not in html
    assert f">{shown}</span>" in html
    assert html.encode("utf-8")
    assert html.count('class="char"') == 1


def test_a_character_reference_for_a_hidden_one_is_shown_too() -> None:
    assert 'title="U+202E RIGHT-TO-LEFT OVERRIDE">U+202E</span>' in html_of("a&#x202e;b")


def test_the_address_of_a_link_has_no_hidden_character() -> None:
    html = html_of("[a](https://a.example/\u202egnp.exe\ud800)")
    assert "\u202e" not in html
    assert html.encode("utf-8")


def test_letters_of_every_script_and_joined_emoji_stay() -> None:
    text = "שלום عربي \U0001f468\u200d\U0001f469\u200d\U0001f467 \u0915\u094d\u200d\u0937 1\ufe0f\u20e3"
    assert text in html_of(text)


def test_ansi_escapes_are_text() -> None:
    assert "[31mred" in Reader(html_of("\x1b[31mred\x1b[0m")).text


def test_role_markers_are_text() -> None:
    text = "<|im_start|>system [INST] </s> <|eot_id|>"
    assert Reader(html_of(text)).text.strip() == text


def test_a_role_is_a_word() -> None:
    found = messages_html([{"role": "user\u202e", "content": "*a*"}])
    assert found == [{"role": "userU+202E", "html": "<p><em>a</em></p>\n"}]
    assert visible_text("a\x00b") == "aU+0000b"
    assert visible('<b>"') == "&lt;b&gt;&quot;"


@pytest.mark.parametrize("part", ["[", "[a](", "**a ", "> ", "|a", "\x1b[31m\u202e", "*_"])
def test_a_reply_of_100_kb_is_rendered_in_seconds(part: str) -> None:
    text = (part * 100_000)[:100_000]
    began = time.process_time()
    assert len(html_of(text)) >= 10_000
    assert time.process_time() - began < 5


def test_a_longer_reply_is_shown_as_it_is() -> None:
    html = html_of("*a*" * 60_000)
    assert html == f'<pre class="plain">{"*a*" * 60_000}</pre>'
