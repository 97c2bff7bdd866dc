"""No test writes into the registry of the checkout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

WHERE = "ACCORD_REGISTRY"


@pytest.fixture(scope="session", autouse=True)
def _registry_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that live longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WHERE, str(tmp_path_factory.mktemp("registry") / "registry.sqlite"))
        yield


@pytest.fixture(autouse=True)
def _registry_of_the_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WHERE, str(tmp_path_factory.mktemp("registry") / "registry.sqlite"))
