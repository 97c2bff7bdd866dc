"""A chat template ends, whatever it says: by its text, or by a sentence that blames the template."""

from __future__ import annotations

import time

import pytest

from accord.data.chat_template import render_template
from accord.errors import UserError

DOUBLING = "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = DOUBLE %}{% endfor %}"


def rendered(template: str) -> str:
    return render_template(template, {"eos_token": "</s>"}, [{"role": "user", "content": "hi"}], True)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set t %}{% for i in range(99999) %}" + "x" * 2000 + "{% endfor %}{% endset %}{{ t }}",
        "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'a' * 10000000000 }}",
        "{{ ([1] * 1000000000)|length }}",
        "{% set a = 10 %}{{ a ** (a ** a) }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ '{:1000000000}'.format('a') }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%1000000000d'|format(1) }}",
        DOUBLING.replace("DOUBLE", "n.s ~ n.s"),
        DOUBLING.replace("DOUBLE", "n.s + n.s"),
        DOUBLING.replace("DOUBLE", "[n.s, n.s]|join"),
        "{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}",
        "{% set a = 'a' * 100000 %}{{ a|replace('a', a) }}",
    ],
)
def test_a_template_without_an_end_is_blamed_in_a_second(template: str) -> None:
    started = time.thread_time()
    with pytest.raises(UserError, match=r"^the chat template does not end at line \d+: it .*; correct the template$"):
        rendered(template)
    assert time.thread_time() - started < 2.5


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("\n{{ 1 / 0 }}", "the chat template fails at line 2: ZeroDivisionError: division by zero"),
        ("{{ a.b }}", "the chat template fails at line 1: 'a' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "fails at line 1: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ raise_exception('no tools') }}", "the chat template rejects messages with roles user: no tools"),
        ("\n{% for %}", "the chat template is broken at line 2"),
        ("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "cannot be compiled: too many statically nested blocks"),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "the chat template cannot be compiled"),
        ("{{ " + "9" * 5000 + " }}", "the chat template cannot be compiled"),
        ("{{ '\\ud800' }}", "the text holds \\ud800, half of a surrogate pair"),
        ("x" * 1_000_001, "is not a text of at most 1,000,000 characters"),
    ],
)
def test_a_fault_of_a_template_is_a_sentence(template: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        rendered(template)
    assert said in str(caught.value)


def test_what_templates_use_still_works() -> None:
    assert rendered("{{ 'a' ~ 1 ~ 'b' + 'c' }}{{ '%s-%02d' % ('x', 7) }}{{ '{:>3}'.format('y') }}") == "a1bcx-07  y"
    loop = "{% for m in messages %}{{ m.content.replace('h', 'j') }}{% endfor %}"
    assert rendered("{% filter upper %}" + loop + "{% endfilter %}") == "JI"
    assert rendered("{% for i in range(20000) %}x{% endfor %}") == "x" * 20000


def test_steps_are_counted_over_all_loops() -> None:
    with pytest.raises(UserError, match="it takes more than 100,000 steps"):
        rendered("{% for i in range(60000) %}{% endfor %}" * 2)
