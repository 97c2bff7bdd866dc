"""Weights of a folder: from the file that the index names, floating point, or refused with file and tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from accord.errors import UserError
from accord.fusion.weights import open_weights
from accord.models.hf_format import INDEX, WEIGHTS, read_weights


def test_the_index_decides_where_a_tensor_is(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "1.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "2.safetensors")
    (tmp_path / INDEX).write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}})
    )
    with pytest.raises(UserError, match=rf"{INDEX}: tensor c is not in 2\.safetensors"):
        read_weights(tmp_path)
    (tmp_path / INDEX).write_text(
        json.dumps({"weight_map": {"b": "1.safetensors", "a": "1.safetensors", "x": "2.safetensors"}})
    )
    save_file({"a": torch.ones(2), "x": torch.ones(1)}, tmp_path / "2.safetensors")
    assert read_weights(tmp_path)["a"].tolist() == [0, 0]
    assert open_weights(tmp_path).read("a").tolist() == [0, 0]


def test_tensors_that_are_not_floating_point_are_named(tmp_path: Path) -> None:
    save_file({"q": torch.zeros(2, dtype=torch.int8)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=rf"{WEIGHTS}: tensor q is int8, expected floating point; is it quantized"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, (2**40).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)
    for read in (read_weights, open_weights):
        with pytest.raises(
            UserError, match=rf"{WEIGHTS}: damaged or not safetensors \(.*\); write or download it again"
        ):
            read(tmp_path)


@pytest.mark.parametrize(
    "places", [None, [], {"a": 1}, {"a": "../1.safetensors"}, {"a": "/1.safetensors"}, {"a": "none"}]
)
def test_a_damaged_index_is_named(tmp_path: Path, places: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    for read in (read_weights, open_weights):
        with pytest.raises(UserError, match=str(tmp_path)):
            read(tmp_path)
