"""Fixtures of the page's tests."""

from __future__ import annotations

from tests.labeling.browsers import browser, sign_in, site, visit  # noqa: F401
from tests.labeling.visitors import new_page, page  # noqa: F401
