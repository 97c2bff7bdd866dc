"""Fixtures of the page's tests."""

from __future__ import annotations

from tests.labeling.visitors import new_page, page  # noqa: F401
