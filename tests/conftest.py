"""No test writes into the registry of the checkout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accord.runtime.run import Run, StageIdentity

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


@pytest.fixture
def open_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run outside any pipeline: results in ``folder``/out/<name>, logs in ``folder``/logs/<name>."""

    def make(
        name: str = "run",
        *,
        folder: Path = tmp_path,
        seed: int = 0,
        log_every: int = 1,
        save_every: int = 100,
        resume: bool = False,
        **provenance: Any,
    ) -> Run:
        identity = StageIdentity(name, folder / "out" / name, folder / "logs" / name, seed, **provenance)
        return Run(identity, log_every, save_every, resume)

    return make
