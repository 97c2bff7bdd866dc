"""Models by their names on the hub: from a cache in its layout without a connection, and downloaded from a local server."""

from __future__ import annotations

import json
import time
from pathlib import Path

import huggingface_hub.constants as settings
import pytest

from accord.errors import UserError
from accord.io.hub import Repository
from accord.models.hub import hub_model, is_hub_model, model_files, pinned_model, tokenizer_files
from tests.conftest import World
from tests.hub_server import NEW, OLD, Hub, write_cache


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    pinned_model.cache_clear()


# ------------------------------------------------------------------ names
@pytest.mark.parametrize(
    "text",
    ["sft", "a/b/c", "/org/name", "./org/name", "org/name.gguf", "org/", "org/name@", "module:function", "org/name:x", "../x"],
)  # fmt: skip
def test_a_path_is_no_model_of_the_hub(text: str) -> None:
    assert not is_hub_model(text)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    assert hub_model("org/name.v1@refs/pr/1") == Repository("org/name.v1", "refs/pr/1")
    assert is_hub_model("org/name")
    (tmp_path / "org" / "name").mkdir()
    assert not is_hub_model("org/name")
    assert is_hub_model("org/name@main")


# ------------------------------------------------------------------ without a connection
def test_the_cache_is_enough(hub_cache: Path, world: World) -> None:
    folder = write_cache(hub_cache, "org/tiny", NEW, Path(world.mamba))
    old = write_cache(hub_cache, "org/tiny", OLD, Path(world.transformer), "v1")
    assert pinned_model("org/tiny") == f"org/tiny@{NEW}"
    assert pinned_model("org/tiny@v1") == f"org/tiny@{OLD}"
    assert model_files("org/tiny") == model_files(f"org/tiny@{NEW}") == folder
    assert model_files("org/tiny@v1") == tokenizer_files("org/tiny@v1") == old


@pytest.mark.parametrize("name", ["org/absent", "org/tiny@v9", f"org/tiny@{OLD}"])
def test_what_is_not_in_the_cache_is_one_sentence_with_the_fix(hub_cache: Path, world: World, name: str) -> None:
    write_cache(hub_cache, "org/tiny", NEW, Path(world.mamba))
    with pytest.raises(UserError) as caught:
        model_files(name)
    owner, _, revision = name.partition("@")
    download = f"`hf download {owner}{f' --revision {revision}' if revision else ''}`"
    assert str(caught.value) == (
        f"{name}: no such folder here, and as a model of the Hugging Face hub it is not in the cache and the hub cannot be"
        f" reached (HF_HUB_OFFLINE is set); download it once with a connection ({download}), or name a folder."
    )


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_cache_that_lacks_a_file_is_not_taken_for_the_model(hub_cache: Path, world: World, missing: str) -> None:
    (write_cache(hub_cache, "org/tiny", NEW, Path(world.mamba)) / missing).unlink()
    assert pinned_model("org/tiny") == f"org/tiny@{NEW}"
    with pytest.raises(UserError):
        model_files("org/tiny")


def test_every_shard_must_be_there(hub_cache: Path, world: World) -> None:
    folder = write_cache(hub_cache, "org/tiny", NEW, Path(world.mamba))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(UserError):
        model_files("org/tiny")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert model_files("org/tiny") == folder


# ------------------------------------------------------------------ from a server
def test_no_weights_are_downloaded_for_the_commit(model_hub: Hub) -> None:
    assert pinned_model("org/tiny") == f"org/tiny@{NEW}"
    assert pinned_model("org/tiny@refs/pr/1") == f"org/tiny@{OLD}"
    assert not model_hub.downloaded


def test_only_what_a_model_needs_is_downloaded(model_hub: Hub, world: World) -> None:
    said: list[str] = []
    folder = model_files("org/tiny", said.append)
    for file in Path(world.mamba).iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes() or file.name == "config.json"
    for other in ("pytorch_model.bin", "modeling_own.py", "onnx", "consolidated.safetensors"):
        assert not (folder / other).exists()
    assert said == [f"org/tiny: downloading aaaaaaaa from the Hugging Face hub to {folder}"]


def test_what_was_downloaded_is_found_without_a_connection(model_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its branch as well, although its commit was downloaded."""
    folders = [model_files(pinned_model(name)) for name in ("org/tiny", "org/tiny@v1")]
    offline(monkeypatch)
    asked = len(model_hub.asked)
    assert [model_files(name) for name in ("org/tiny", "org/tiny@v1")] == folders
    assert len(model_hub.asked) == asked


def test_a_tokenizer_comes_without_weights(model_hub: Hub) -> None:
    assert (tokenizer_files("org/tiny") / "tokenizer.json").is_file()
    assert not any(name.endswith(".safetensors") for name in model_hub.downloaded)


def test_a_model_that_is_there_is_not_asked_for_again(model_hub: Hub) -> None:
    name = pinned_model("org/tiny")
    model_files(name)
    model_hub.asked.clear()
    model_files(name)
    assert not model_hub.asked


def test_what_another_program_left_out_is_downloaded(model_hub: Hub, world: World, hub_cache: Path) -> None:
    """A cache of weights alone, as ``AutoModel.from_pretrained`` leaves it."""
    folder = write_cache(hub_cache, "org/tiny", NEW, Path(world.mamba))
    (folder / "tokenizer.json").unlink()
    assert (model_files("org/tiny") / "tokenizer.json").is_file()
    assert "model.safetensors" not in model_hub.downloaded


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/absent", "org/absent: no such folder here, and no such model on the Hugging Face hub for you; a private or gated"),
        ("org/tiny@v9", "org/tiny@v9: the model org/tiny has no revision 'v9'; name a branch, a tag or a commit."),
        ("org/pickled", "has no model.safetensors; only weights as safetensors are read"),
        ("org/a--b", "org/a--b: "),
    ],
)  # fmt: skip
def test_what_the_hub_does_not_have_is_named(model_hub: Hub, name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        model_files(name)
    assert said in str(caught.value)


def test_a_hub_that_does_not_answer_is_named_soon(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(settings, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"it is not in the cache and the hub cannot be reached \(.*refused.*\)"):
        pinned_model("org/tiny")
    assert time.monotonic() - started < 30
