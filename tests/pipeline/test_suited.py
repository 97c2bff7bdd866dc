"""Open settings: precision by the device, learning rates by the size of the model; neither where the config says them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from accord.config.learning_rates import RATES, SMALL, suited_rate
from accord.config.load import load
from accord.pipeline import suited as module
from accord.pipeline.suited import suited
from accord.pipeline.task import stage_key
from accord.stage_kinds.table import STAGE_KINDS

KINDS = ("sft", "reward", "dpo", "ppo")


def config(kind: str, *overrides: str) -> Any:
    return load(STAGE_KINDS[kind].settings, None, overrides)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder whose header claims 135 million parameters; no weight is read, so none is there."""
    folder = tmp_path / "large"
    folder.mkdir()
    header = b'{"w":{"dtype":"F32","shape":[135000000],"data_offsets":[0,540000000]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(folder)


@pytest.mark.parametrize(("kind", "rate"), [("sft", 3e-5), ("reward", 2e-5), ("dpo", 1.5e-5), ("ppo", 3e-5)])
def test_an_open_rate_is_that_of_the_models_size_and_is_said(kind: str, rate: float, large: str) -> None:
    found = suited(kind, config(kind, f"model.base_model={large}"))
    training: Any = found.config.training  # type: ignore[attr-defined]
    assert training.learning_rate == rate
    assert f"{rate:g}" in found.decided["rates"]
    assert "135 million parameters" in found.decided["rates"]
    if kind == "reward":
        assert training.head_learning_rate == 10 * rate
    if kind == "ppo":
        assert training.critic_learning_rate == 2e-5
    assert suited(kind, found.config) == module.Suited(found.config)  # decided once


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_of_the_config_stays(kind: str, large: str) -> None:
    for rate in (0.0, 0.5):
        found = suited(kind, config(kind, f"model.base_model={large}", f"training.learning_rate={rate}"))
        assert found.config.training.learning_rate == rate  # type: ignore[attr-defined]
        assert found.decided == {}


@pytest.mark.parametrize(("kind", "rate"), [("sft", 1e-4), ("reward", 1e-3), ("dpo", 1e-4), ("ppo", 3e-4)])
def test_a_small_model_keeps_the_rate_and_the_key_that_it_had(kind: str, rate: float, tmp_path: Path) -> None:
    save_file({"w": np.zeros(10, np.float32)}, tmp_path / "model.safetensors")
    base = f"model.base_model={tmp_path}"
    found = suited(kind, config(kind, base))
    assert found.config.training.learning_rate == rate  # type: ignore[attr-defined]
    assert found.decided == {}
    written = config(kind, base, f"training.learning_rate={rate}", "precision=float32")
    assert stage_key(kind, config(kind, base), {}) == stage_key(kind, written, {})


def test_a_model_that_cannot_be_counted_is_not_taken_for_a_small_one(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"?")
    found = suited("dpo", config("dpo", f"model.base_model={tmp_path}"))
    assert found.config.training.learning_rate == 5e-7  # type: ignore[attr-defined]


def test_rates_fall_as_models_grow() -> None:
    assert suited_rate("sft", SMALL - 1) is None
    assert suited_rate("base", SMALL) is None
    for kind in KINDS:
        rates = [suited_rate(kind, size) or 0.0 for size in sorted(RATES)]
        assert rates == sorted(rates, reverse=True)
        assert len(rates) == 3


@pytest.mark.parametrize(
    ("files", "available", "supported", "device", "precision"),
    [
        (False, True, True, "auto", "float32"),
        (True, True, True, "auto", "bfloat16"),
        (True, True, True, "cuda:1", "bfloat16"),
        (True, True, True, "cpu", "float32"),
        (True, True, True, "mps", "float32"),
        (True, True, False, "cuda", "float32"),
        (True, False, True, "auto", "float32"),
    ],
)
def test_open_precision_is_bfloat16_on_cuda_devices_that_have_it(
    files: bool,
    available: bool,
    supported: bool,
    device: str,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GPU_FILES", (str(tmp_path if files else tmp_path / "absent"),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported or including_emulation
    )
    found = suited("sft", config("sft", f"device={device}"))
    assert found.config.precision == precision  # type: ignore[attr-defined]
    assert ("precision" in found.decided) == (precision == "bfloat16")
    assert suited("sft", config("sft", f"device={device}", "precision=float32")).config.precision == "float32"  # type: ignore[attr-defined]
