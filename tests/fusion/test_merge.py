"""Folders to a folder: what is written, what is refused, and how much memory it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from accord.config.fusion import FuseConfig
from accord.errors import UserError
from accord.fusion.merge import merge
from accord.fusion.weights import Layout, open_weights, write_streamed
from accord.io.digests import content_digest
from accord.models.hf_format import INDEX, WEIGHTS
from accord.models.open import open_backbone

Save = Callable[..., str]
METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"normalize": True},
    "ties": {},
    "dare_linear": {"normalize": True},
    "dare_ties": {"normalize": True},
}


def fuse(target: Path, models: list[Any], **settings: Any) -> dict[str, torch.Tensor]:
    merge(FuseConfig(models=models, **settings), target)
    return load_file(target / WEIGHTS)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / WEIGHTS)


# ------------------------------------------------------------------ what is written
@pytest.mark.parametrize("method", [*METHODS, "interpolate"])
def test_a_model_fused_with_itself_is_itself(method: str, save: Save, tmp_path: Path) -> None:
    base, model = save("base"), save("a", seed=1)
    models = [model] if method == "interpolate" else [model, model]
    given = {**METHODS.get(method, {}), "t": 1.0} if method == "interpolate" else METHODS[method]
    settings = {"method": method, **given, **({} if method in ("linear", "slerp") else {"base": base})}
    merged = fuse(tmp_path / "out", models, **settings)
    expected = weights(model)
    assert sorted(merged) == sorted(expected)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_weights_of_one_and_zero_give_the_one(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    for place, expected in enumerate((first, second)):
        models = [{"model": m, "weight": float(i == place)} for i, m in enumerate((first, second))]
        merged = fuse(tmp_path / f"out{place}", models)
        assert all(torch.equal(merged[name], tensor) for name, tensor in weights(expected).items())


def test_it_is_the_average_and_its_logits_open_everywhere(save: Save, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from accord.types import Packed

    first, second = save("a", seed=1), save("b", seed=2)
    merged = fuse(tmp_path / "out", [{"model": first, "weight": 3.0}, second])
    for name, tensor in weights(first).items():
        torch.testing.assert_close(merged[name], (3 * tensor + weights(second)[name]) / 4)
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), local_files_only=True).eval()
    ours = open_backbone(tmp_path / "out")
    ours.eval()
    tokens = AutoTokenizer.from_pretrained(str(tmp_path / "out"))("what is it?", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(ours.logits(ours(Packed.of([tokens]))), expected, rtol=1e-4, atol=1e-4)


def test_the_manifest_names_parents_kind_and_settings(save: Save, tmp_path: Path) -> None:
    base, first, second = save("base"), save("a", seed=1), save("b", seed=2)
    (Path(first) / "manifest.json").write_text(json.dumps({"kind": "ppo", "digest": "d" * 32}))
    config = FuseConfig(method="ties", base=base, models=[{"model": first, "density": 0.5}, second])
    parents = merge(config, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert found["kind"] == "ppo"
    assert found["parents"] == parents
    assert parents == {
        "models.0.model": "d" * 32,
        "models.1.model": content_digest(Path(second)),
        "base": content_digest(Path(base)),
    }
    assert found["settings"]["method"] == "ties"
    assert [m["density"] for m in found["settings"]["models"]] == [0.5, 1.0]
    assert "out" not in found["settings"]
    assert found["metrics"]["models"] == 2
    records = json.loads((tmp_path / "out" / "lineage.json").read_text())["records"]
    assert {record["digest"] for record in records} == set(parents.values())
    assert found["digest"] == content_digest(tmp_path / "out")


def test_order_does_not_matter_dare_included(save: Save, tmp_path: Path) -> None:
    base, first, second = save("base"), save("a", seed=1), save("b", seed=2)
    for method in ("linear", "ties", "dare_linear", "dare_ties"):
        settings: dict[str, Any] = {"method": method, **({} if method == "linear" else {"base": base})}
        density = 1.0 if method == "linear" else 0.5
        models = [{"model": first, "weight": 0.7, "density": density}, {"model": second, "density": density}]
        one = fuse(tmp_path / f"{method}1", models, **settings)
        two = fuse(tmp_path / f"{method}2", models[::-1], **settings)
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6, msg=f"{method} {name}")


def test_dare_draws_afresh_for_each_seed_model_and_tensor(save: Save, tmp_path: Path) -> None:
    base, first = save("base"), save("a", seed=1)
    settings: dict[str, Any] = {"method": "dare_linear", "base": base}
    half = {"model": first, "density": 0.5}
    zero = fuse(tmp_path / "0", [half], **settings)
    again = fuse(tmp_path / "1", [half], **settings)
    other = fuse(tmp_path / "2", [half], seed=1, **settings)
    twice = fuse(tmp_path / "3", [half, half], **settings)
    start = weights(base)
    large = max(start, key=lambda name: start[name].numel())
    kept = (zero[large] != start[large]).float()
    assert abs(float(kept.mean()) - 0.5) < 0.05
    assert torch.equal(zero[large], again[large])
    assert abs(float((kept * (other[large] != start[large]).float()).mean()) - 0.25) < 0.05, "independent draws"
    assert abs(float((twice[large] != start[large]).float().mean()) - 0.75) < 0.05, "copies draw apart"
    same = [n for n in start if start[n].shape == start[large].shape]
    masks = [(zero[n] != start[n]).float() for n in same]
    assert len(masks) > 1
    assert all(abs(float((masks[0] * m).mean()) - 0.25) < 0.06 for m in masks[1:])


def test_slerp_starts_at_the_base_wherever_it_is_listed(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    one = fuse(tmp_path / "1", [first, second], method="slerp", t=0.2)
    two = fuse(tmp_path / "2", [second, first], method="slerp", base=first, t=0.2)
    three = fuse(tmp_path / "3", [second], method="slerp", base=first, t=0.2)
    four = fuse(tmp_path / "4", [first, second], method="slerp", base=second, t=0.8)
    for name, tensor in one.items():
        assert torch.equal(two[name], tensor)
        assert torch.equal(three[name], tensor)
        torch.testing.assert_close(four[name], tensor)


@pytest.mark.parametrize("family", ["mamba", "transformer"])
def test_interpolation_leaves_the_reference_and_goes_beyond(family: str, save: Save, tmp_path: Path) -> None:
    base, model = save("base", family=family), save("a", family=family, seed=1)
    for eta in (0.0, 0.5, 1.0, 1.5):
        merged = fuse(tmp_path / f"{eta}", [model], method="interpolate", base=base, t=eta)
        for name, tensor in weights(base).items():
            torch.testing.assert_close(merged[name], tensor + eta * (weights(model)[name] - tensor))


def halved(folder: str, dtype: torch.dtype) -> None:
    path = Path(folder) / WEIGHTS
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def test_sums_are_in_float32_and_written_as_the_first_model_has_it(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    halved(first, torch.bfloat16)
    merged = fuse(tmp_path / "1", [first, second])
    for name, tensor in weights(first).items():
        exact = (tensor.float() + weights(second)[name]) / 2
        assert torch.equal(merged[name], exact.bfloat16())
    merged = fuse(tmp_path / "2", [second, first])
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    merged = fuse(tmp_path / "3", [second, first], dtype="float16")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}
    assert json.loads((tmp_path / "3" / "config.json").read_text())["dtype"] == "float16"


def test_shards_are_read_like_one_file(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    expected = fuse(tmp_path / "1", [first, second])
    state = weights(second)
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(state))}
    for part in set(places.values()):
        save_file({name: state[name] for name in state if places[name] == part}, Path(second) / part, {"format": "pt"})
    (Path(second) / WEIGHTS).unlink()
    (Path(second) / INDEX).write_text(json.dumps({"weight_map": places}))
    merged = fuse(tmp_path / "2", [first, second])
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())


def test_code_and_odd_files_do_not_go_along(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    (Path(first) / "modeling_x.py").write_text("print('run')")
    (Path(first) / "pytorch_model.bin").write_bytes(b"pickle")
    fuse(tmp_path / "out", [first, second])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        WEIGHTS,
        "config.json",
        "generation_config.json",
        "lineage.json",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


# ------------------------------------------------------------------ what is refused
def edit(folder: str, name: str, **values: Any) -> None:
    path = Path(folder) / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(tmp_path: Path, models: list[Any], **settings: Any) -> str:
    """The error's one sentence; no file is left."""
    with pytest.raises(UserError) as caught:
        fuse(tmp_path / "refused" / "out", models, **settings)
    assert not list(tmp_path.glob("refused/*"))
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def test_other_architectures_are_refused_by_name(save: Save, tmp_path: Path) -> None:
    first = save("a", seed=1)
    said = refusal(tmp_path, [first, save("mamba", family="mamba")])
    assert "model_type in config.json is 'llama' and 'mamba'" in said
    assert "hidden_size in config.json is 32 and 64" in refusal(tmp_path, [first, save("wide", width=64)])
    assert "num_hidden_layers in config.json is 2 and 3" in refusal(tmp_path, [first, save("deep", layers=3)])
    other = save("b", seed=2)
    edit(other, "config.json", rms_norm_eps=0.5)  # no shape shows it
    assert "rms_norm_eps" in refusal(tmp_path, [first, other])
    assert "trained from one base" in refusal(tmp_path, [first, other])


def test_defaults_that_one_config_leaves_out_are_no_difference(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    edit(second, "config.json", transformers_version="9", _name_or_path="x", use_cache=True, attention_dropout=0.0)
    fuse(tmp_path / "out", [first, second])
    edit(second, "config.json", attention_dropout=0.5)
    assert "attention_dropout" in refusal(tmp_path, [first, second])


def test_other_tensors_are_refused(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    state = weights(second)
    name = sorted(state)[0]
    save_file({**state, "extra.weight": torch.zeros(2)}, Path(second) / WEIGHTS)
    assert "has the tensor extra.weight" in refusal(tmp_path, [first, second])
    save_file({**state, name: state[name][:-1]}, Path(second) / WEIGHTS)
    assert f"{name} has shape" in refusal(tmp_path, [first, second])


def test_other_tokenizers_are_refused(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    path = Path(second) / "tokenizer.json"
    original = path.read_text()
    path.write_text(original.replace('"q": 21', '"Z": 21'))
    assert "token 21 is 'q' and 'Z'" in refusal(tmp_path, [first, second])
    said = refusal(tmp_path, [first], method="interpolate", base=second)
    assert "different tokenizers" in said
    path.write_text(original)
    (Path(second) / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<eos>")
    assert "chat templates" in refusal(tmp_path, [first, second])
    fuse(tmp_path / "base", [first], method="interpolate", base=second)  # a base need be no chat model


def test_what_is_no_folder_of_safetensors_is_refused(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    assert "accord pretrained source=" in refusal(tmp_path, [first, "org/name"])
    assert ".gguf file" in refusal(tmp_path, [first, str(tmp_path / "x.gguf")])
    (Path(second) / WEIGHTS).rename(Path(second) / "pytorch_model.bin")
    assert "save them with transformers' save_pretrained" in refusal(tmp_path, [first, second])
    (Path(second) / WEIGHTS).write_bytes(b"\0" * 100)
    assert "damaged or not safetensors" in refusal(tmp_path, [first, second])


def test_what_cannot_be_averaged_is_refused(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    name = sorted(weights(first))[0]
    clean = weights(second)
    for value, dtype in ((float("nan"), "first"), (1e30, "float16")):
        save_file({**clean, name: clean[name] * value}, Path(second) / WEIGHTS)
        assert f"{name} is not finite" in refusal(tmp_path, [first, second], dtype=dtype)
    for folder, number in ((first, 1), (second, 2)):
        save_file({**clean, name: clean[name], "n.steps": torch.tensor([number])}, Path(folder) / WEIGHTS)
    assert "n.steps, which holds torch.int64" in refusal(tmp_path, [first, second])
    save_file({**clean, "n.steps": torch.tensor([1])}, Path(second) / WEIGHTS)
    assert fuse(tmp_path / "out", [first, second])["n.steps"].tolist() == [1]


def test_a_failure_keeps_what_was_there(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    target = tmp_path / "out"
    fuse(target, [first, second])
    before = content_digest(target)

    def stop(parameters: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(FuseConfig(models=[first]), target, tick=stop)
    assert content_digest(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_a_changed_byte_of_a_model_is_refused(save: Save, tmp_path: Path) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    fuse(tmp_path / "half", [first, second])
    path = tmp_path / "half" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert f"{path}: changed" in refusal(tmp_path, [str(tmp_path / "half"), first])


# ------------------------------------------------------------------ the file and the memory
def test_the_written_file_is_what_safetensors_would_write(tmp_path: Path) -> None:
    state = {
        "b": torch.randn(3, 2),
        "a": torch.randn(5).bfloat16(),
        "c": torch.tensor(1.5),
        "d": torch.zeros(0, 4),
        "e": torch.tensor([True, False, True]),
        "f": torch.arange(3),
        "transposed": torch.randn(4, 3).T,
    }
    layouts = {name: Layout(tuple(t.shape), t.dtype) for name, t in state.items()}
    write_streamed(tmp_path / WEIGHTS, layouts, state.items())
    found = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    opened = open_weights(tmp_path)
    assert dict(opened.layouts) == layouts
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in state.items())


MEASURE = """
import sys
from pathlib import Path
import torch
import accord.fusion.methods, accord.fusion.weights
from accord.config.load import build
from accord.fusion.merge import merge
from accord.config.fusion import FuseConfig

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024

method, target, small, base, *models = sys.argv[1:]
settings = {"method": method, **({} if method == "linear" else {"base": small})}
merge(FuseConfig(models=[small, small], **settings), Path(target + "_small"))  # imports and thread pools come first
settings = {"method": method, **({} if method == "linear" else {"base": base})}
config = FuseConfig(models=models, **settings)
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
merge(config, Path(target))
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_memory_stays_below_one_model(method: str, save: Save, tmp_path: Path) -> None:
    """Four models of 32 MB in 32 tensors: the peak is a few tensors', mapped pages of the files included."""
    small, folders = save("small"), []
    for seed in range(4):
        folder = tmp_path / f"large{seed}"
        shutil.copytree(small, folder)
        torch.manual_seed(seed)
        save_file({f"layer.{i}": torch.randn(256, 1024) for i in range(32)}, folder / WEIGHTS)
        folders.append(str(folder))
    command = [sys.executable, "-c", MEASURE, method, str(tmp_path / "out"), small, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = float(done.stdout.split()[-1])
    assert peak < 32, f"{peak:.0f} MB for models of 32 MB"
    assert (tmp_path / "out" / WEIGHTS).stat().st_size > 32 * 2**20
