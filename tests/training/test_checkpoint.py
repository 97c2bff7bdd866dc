"""States on disk: whole or not at all, only for the settings they were made with, and everything that is random."""

from __future__ import annotations

import errno
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import nn

from accord.errors import UserError
from accord.training.checkpoint import Checkpoint, read_pt, write_pt


def part(value: float) -> nn.Module:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    return layer


def kept(path: Path) -> float:
    layer = part(0.0)
    Checkpoint(path, "f", {"model": layer}).restore()
    return float(layer.weight[0, 0].detach())  # type: ignore[operator]


def test_parts_come_back_with_the_step(tmp_path: Path) -> None:
    path = tmp_path / "run" / "state.pt"
    assert Checkpoint(path, "f", {"model": part(1.0)}).restore() == 0  # nothing there yet
    Checkpoint(path, "f", {"model": part(2.0)}).save(17)
    layer = part(0.0)
    assert Checkpoint(path, "f", {"model": layer}).restore() == 17
    assert (layer.weight == 2.0).all()
    Checkpoint(path, "f", {}).clear()
    assert not path.exists()
    Checkpoint(path, "f", {}).clear()


def test_every_random_generator_is_restored(tmp_path: Path) -> None:
    def draws() -> list[float]:
        numbers = [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())]
        return [*numbers, float(torch.rand(())), float(torch.randn(()))]

    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    draws()  # Python's and NumPy's second normal number is now in store
    checkpoint = Checkpoint(tmp_path / "state.pt", "f", {})
    checkpoint.save(1)
    expected = draws()
    draws()
    checkpoint.restore()
    assert draws() == expected


def test_other_settings_are_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "state.pt", "these", {"model": part(1.0)}).save(1)
    layer = part(5.0)
    with pytest.raises(UserError, match=r"state\.pt: this state was made with other settings"):
        Checkpoint(tmp_path / "state.pt", "those", {"model": layer}).restore()
    assert (layer.weight == 5.0).all()


@pytest.mark.parametrize("missing", [{}, {"model": part(1.0)}])
def test_a_state_of_other_parts_is_refused(tmp_path: Path, missing: dict[str, Any]) -> None:
    """A state that another version of the package wrote."""
    Checkpoint(tmp_path / "state.pt", "f", missing).save(1)
    with pytest.raises(UserError, match=r"state\.pt: .*without --resume"):
        Checkpoint(tmp_path / "state.pt", "f", {"model": part(0.0), "data": part(0.0)}).restore()


# ------------------------------------------------------------------------------------- kills and full disks
class Killed(BaseException):
    pass


def test_a_kill_while_writing_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    Checkpoint(path, "f", {"model": part(1.0)}).save(1)

    def killed(*_: object) -> NoReturn:
        raise Killed

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, killed)
            with pytest.raises(Killed):
                Checkpoint(path, "f", {"model": part(2.0)}).save(2)
        assert kept(path) == 1.0
    Checkpoint(path, "f", {"model": part(3.0)}).save(3)
    assert kept(path) == 3.0


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_failed_write_is_reported_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "state.pt"
    Checkpoint(path, "f", {"model": part(1.0)}).save(1)

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(UserError, match=r"state\.pt: could not be written \(No space left on device\)"):
            Checkpoint(path, "f", {"model": part(2.0)}).save(2)
    assert kept(path) == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_disk_that_fills_up_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure comes from within torch.save's own writer."""

    class Full:
        def write(self, _: bytes) -> NoReturn:
            raise OSError(errno.ENOSPC, "No space left on device")

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, _file: save(content, Full()))
    with pytest.raises(UserError, match=r"state\.pt: could not be written"):
        write_pt(tmp_path / "state.pt", {"x": torch.zeros(10)})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- what is no state
def damaged(path: Path, how: str) -> None:
    write_pt(path, {"fingerprint": "f", "step": 1, "x": torch.zeros(5000)})
    content = path.read_bytes()
    if how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {
                "cut": content[: len(content) // 2],
                "empty": b"",
                "text": b"this is no checkpoint at all\n",
                "noise": bytes(random.Random(0).randbytes(3000)),
            }[how]
        )


@pytest.mark.parametrize("how", ["cut", "empty", "text", "noise", "folder"])
def test_a_damaged_state_is_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "state.pt"
    damaged(path, how)
    with pytest.raises(UserError, match=r"state\.pt: (not a readable checkpoint|a folder, expected a file)"):
        Checkpoint(path, "f", {}).restore()


def test_a_flipped_byte_is_seen_or_does_no_harm(tmp_path: Path) -> None:
    path, rng = tmp_path / "state.pt", random.Random(0)
    content = {"step": 1, "x": torch.arange(300.0), "names": ["a", 2.5]}
    write_pt(path, content)
    whole, seen = path.read_bytes(), 0
    for _ in range(300):
        broken = bytearray(whole)
        place = rng.randrange(len(whole))
        broken[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(broken))
        try:
            found = read_pt(path)
        except UserError:
            seen += 1
        else:
            assert torch.equal(found.pop("x"), content["x"])  # type: ignore[arg-type]
            assert found == {k: v for k, v in content.items() if k != "x"}
    assert seen > 150


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pt: no such checkpoint"):
        read_pt(tmp_path / "gone.pt")


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "state.pt")
    with pytest.raises(UserError, match="holds a Tensor"):
        read_pt(tmp_path / "state.pt")
    write_pt(tmp_path / "state.pt", {"model_state_dict": {}})
    with pytest.raises(UserError, match=r"state\.pt"):
        Checkpoint(tmp_path / "state.pt", "f", {}).restore()


class Trap:
    """Would write a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copy, (__file__, str(self.target))


def test_code_in_a_state_is_never_run(tmp_path: Path) -> None:
    torch.save({"fingerprint": "f", "x": Trap(tmp_path / "run")}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_pt(tmp_path / "state.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": "x"}, "step: expected a valid integer, found 'x'"),
        ({"parts": 5}, "parts: expected a valid dictionary, found 5"),
        ({"parts": {"model": {"weight": torch.zeros(3)}}}, "its part 'model' cannot be restored"),
        ({"parts": {"model": 5}}, "its part 'model' cannot be restored"),
        ({"rng": {}}, "its random states cannot be restored"),
    ],
)
def test_a_state_of_another_shape_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "state.pt"
    checkpoint = Checkpoint(path, "f", {"model": part(1.0)})
    checkpoint.save(3)
    write_pt(path, {**read_pt(path), **change})
    with pytest.raises(UserError, match=rf"state\.pt: {said}.*; remove it to start this stage from the beginning"):
        checkpoint.restore()


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    with pytest.raises(UserError, match=r"state\.pt: not a readable checkpoint"):
        read_pt(path)
