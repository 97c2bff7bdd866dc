from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from accord.io.parameter_count import parameters_of


def test_a_tensor_in_two_shards_counts_once(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.zeros(5, np.float16), "c": np.zeros((), np.float32)}, tmp_path / "model-2.safetensors")
    assert parameters_of(tmp_path) == 12 + 5 + 1


def test_what_cannot_be_counted_is_none_and_no_error(tmp_path: Path) -> None:
    assert parameters_of(tmp_path) is None
    assert parameters_of(tmp_path / "absent.gguf") is None
    for content in (b"", b"\xff" * 100, (2).to_bytes(8, "little") + b"[]", (9).to_bytes(8, "little") + b'{"a":{}}  '):
        (tmp_path / "model.safetensors").write_bytes(content)
        (tmp_path / "model.gguf").write_bytes(content)
        assert parameters_of(tmp_path) is None
        assert parameters_of(tmp_path / "model.gguf") is None
