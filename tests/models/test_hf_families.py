"""Every family of docs/models.md as a tiny random model: logits, gradients, positions, a saved folder; sft and ppo for some."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.errors import UserError
from accord.models.open import LLAMA_FAMILY, open_backbone
from accord.types import Packed
from tests.models.families import FAST, MORE, NAMED, REFUSED, tiny_model
from tests.models.folders import own_logits, save, texts

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
EXPERTS = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss", "llama4_text"}
TRAINED = ("gpt2", "gemma3_text", "qwen2_moe", "mamba2", "jamba")


def listed(heading: str) -> list[str]:
    """The families in code font in a section of the page."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next(text for text in sections if text.startswith(heading))
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [name for row in rows[2:] for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]


def test_the_page_lists_the_families_that_are_tested() -> None:
    assert listed("Fast") == list(FAST)
    assert {*FAST} == {*LLAMA_FAMILY, "mamba"}
    assert sorted(listed("Through transformers")) == sorted([*NAMED, *MORE])
    assert sorted(listed("Refused")) == sorted(REFUSED)


@pytest.mark.parametrize("family", [*FAST, *NAMED, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_family_opens_learns_and_is_saved(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    folder = save(model, tmp_path / "model")
    backbone = open_backbone(folder)
    some = texts(11, 3, 8)
    packed = Packed.of(some)
    wanted = own_logits(model, some)
    assert wanted.std() > 0.01
    states = backbone(packed)
    torch.testing.assert_close(
        backbone.logits(states).detach(), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
    )
    _, cache = backbone.prefill(packed, 1)
    stepped = backbone.step(torch.tensor([4, 5, 6]), cache)
    longer = [[*text, token] for text, token in zip(some, (4, 5, 6), strict=True)]
    with torch.no_grad():
        whole = backbone(Packed.of(longer))[Packed.of(longer).last]
    torch.testing.assert_close(stepped, whole, rtol=1e-3, atol=1e-4)
    backbone.logits(states).logsumexp(-1).sum().backward()
    assert sum(p.grad is not None for p in backbone.parameters()) > 3
    assert ("a mixture of experts" in " ".join(backbone.notes)) >= (family in EXPERTS)
    if backbone.max_positions is None:
        assert own_logits(model, texts(70)).isfinite().all(), "texts may be longer than max_position_embeddings"
    else:
        with pytest.raises(Exception, match=r".+"):
            own_logits(model, texts(backbone.max_positions + 1))
    (tmp_path / "saved").mkdir()
    backbone.save(str(tmp_path / "saved"))
    again = open_backbone(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.logits(again(packed)), backbone.logits(backbone(packed)))


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_trained_is_refused_by_name(family: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"model: model type '{family}': .* it cannot be trained here"):
        open_backbone(save(tiny_model(family), tmp_path / "model"))


@pytest.mark.parametrize(
    "family",
    [*TRAINED, *(pytest.param(name, marks=pytest.mark.slow) for name in (*NAMED, *MORE) if name not in TRAINED)],
)
def test_a_family_goes_through_sft_and_ppo(
    family: str, stage: Any, rewards: str, lines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tiny_model(family), tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "completion": "aa"}) + "\n" for p in ("a", "b", "c", "d")))
    training = {"batch_size": 4, "num_epochs": 2}
    stage(
        "sft", {"model": {"base_model": folder, "max_length": 60}, "data": {"train": str(rows)}, "training": training}
    )
    said = capsys.readouterr().out
    assert " ".join(said.split()).count("opened through transformers") == 1
    sft = str(tmp_path / "out" / "sft" / "model")
    training = {
        "replies": 4,
        "samples_per_prompt": 2,
        "batch_size": 4,
        "iterations": 3,
        "num_epochs": 1,
        "ent_coef": 0.1,
    }
    values = {
        "model": {"base_model": sft, "max_length": 60},
        "prompts": str(rows),
        "sampling": {"max_new_tokens": 4},
        "reward": {"source": f"{rewards}:share_of_a"},
        "training": training,
    }
    stage("ppo", values)
    steps = [row for row in lines("ppo") if "approx_kl" in row]
    assert len(steps) == 3
    assert abs(steps[0]["approx_kl"]) < 1e-5, "the trainer's pass gives the sampler's log-probs"
    before, after = open_backbone(sft), open_backbone(tmp_path / "out" / "ppo" / "model")
    assert before.state_dict().keys() == after.state_dict().keys()
    moved = sum(not torch.equal(x, after.state_dict()[name]) for name, x in before.state_dict().items())
    assert moved > 3
