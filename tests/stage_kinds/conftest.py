"""The models of the tests of fusion."""

from tests.fusion.conftest import pairs, save

__all__ = ["pairs", "save"]
