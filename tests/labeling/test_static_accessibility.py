"""axe-core on every page and dialog, dark and light: nothing serious."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.labeling.browsers import NUMBERED, SETTLED, pair
from tests.labeling.test_static_owner import answer

MARKDOWN = """# Title

1. **One** `two`

```python
print(1)
```

| a | b |
|---|---|
| 1 | [x](https://example.com) |

> quoted \x1b\u202e
"""


@pytest.fixture(scope="module")
def issues() -> Callable[[Any], list[str]]:
    """The serious and critical issues that axe-core finds on a page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (extra test)").Axe()

    def find(page: Any) -> list[str]:
        found = axe.run(page).response["violations"]
        return [
            f"{one['id']}: {node['target']} {node['any'][0]['message'] if node['any'] else ''}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    return find


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_annotators_pages_have_no_serious_issue(site, visit, sign_in, issues, scheme: str) -> None:
    here = site([pair(MARKDOWN, "Plain words"), *NUMBERED], guidelines=MARKDOWN, tags=("rude",))
    page = visit(here.url, color_scheme=scheme)
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    page.locator("#login-error", has_text="valid").wait_for()
    assert issues(page) == []
    page = sign_in(here, color_scheme=scheme, viewport={"width": 390, "height": 844})
    assert issues(page) == []  # with the guidelines over it
    page.get_by_role("button", name="I have read them").click()
    page.set_viewport_size({"width": 1440, "height": 900})
    page.wait_for_timeout(SETTLED)
    page.keyboard.press("d")
    page.keyboard.press("c")
    assert issues(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    page.locator("#status", has_text="Saved").wait_for()
    page.keyboard.press("u")
    page.locator("#status", has_text="Undone").wait_for()
    assert issues(page) == []
    for key in ("?", "e"):
        page.keyboard.press(key)
        assert issues(page) == []
        page.keyboard.press("Escape")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_owners_page_has_no_serious_issue(site, sign_in, issues, scheme: str) -> None:
    here = site(NUMBERED[:5], overlap=2)
    answer(here, "Bo", "aabbt")
    answer(here, "Cy", "aabnt")
    page = sign_in(here, "Olga", "owner", ready=".tile >> nth=0", color_scheme=scheme)
    assert issues(page) == []
    page.locator("#disagreements button").first.click()
    page.locator("#decide").wait_for()
    assert issues(page) == []
