"""Models of transformers as backbones: learned positions (GPT-2), a state space (Mamba), and special heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accord.errors import UserError
from accord.models.backbone import Backbone
from accord.models.hf import CausalLM
from accord.types import Packed

transformers = pytest.importorskip("transformers")

KINDS = ["gpt2", "mamba"]


def peer_of(kind: str):
    common = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {**common, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {**sizes, "num_attention_heads": 4, "intermediate_size": 48}
    if kind == "gpt2":
        config = transformers.GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    elif kind == "gpt_neox":
        config = transformers.GPTNeoXConfig(**heads, attention_dropout=0.5, hidden_dropout=0.5)
    elif kind == "mamba":
        config = transformers.MambaConfig(**sizes, state_size=4)
    else:
        config = transformers.Gemma2Config(**heads, num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0)
    torch.manual_seed(0)
    peer = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in peer.named_parameters():
            if weight.ndim == 2 and "A_log" not in name:
                weight.normal_(std=0.3)
    return peer.eval()


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> CausalLM:
    return CausalLM(peer_of(request.param))


def tokens(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 61, (n,), generator=generator).tolist() for n in lengths]


def alone(model: CausalLM, text: list[int]) -> torch.Tensor:
    """Logits of the whole model for one text."""
    return model.model(input_ids=torch.tensor([text])).logits[0]


def test_a_model_of_transformers_is_a_backbone_of_its_sizes(model: CausalLM) -> None:
    assert isinstance(model, Backbone)
    assert (model.width, model.vocab_size) == (32, 61)


@torch.no_grad()
def test_packed_logits_are_the_models_own(model: CausalLM) -> None:
    texts = tokens(11, 3, 8)
    logits = model.logits(model(Packed.of(texts)))
    wanted = torch.cat([alone(model, text) for text in texts])
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_shared_prompt_gives_the_states_and_gradients_of_separate_texts(model: CausalLM) -> None:
    prompt, first, second = tokens(6, 4, 7)

    def run(packed: Packed, places: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        logits = model.logits(model(packed)[places])
        logits.logsumexp(-1).sum().backward()
        return logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    shared = run(Packed.of([prompt, first, second], parents=[-1, 0, 0]), list(range(6, 17)))
    separate = run(Packed.of([prompt + first, prompt + second]), [*range(6, 10), *range(16, 23)])
    torch.testing.assert_close(shared[0], separate[0], rtol=1e-5, atol=1e-5)
    assert len(shared[1]) > 10
    for found, wanted in zip(shared[1], separate[1], strict=True):
        assert (found - wanted).norm() <= 1e-4 * wanted.norm() + 1e-6


@torch.no_grad()
def test_no_position_sees_the_future_or_another_text(model: CausalLM) -> None:
    texts = tokens(5, 8)
    changed = [texts[0], [*texts[1][:6], (texts[1][6] + 1) % 61, texts[1][7]]]
    before, after = (model(Packed.of(some)) for some in (texts, changed))
    torch.testing.assert_close(before[:11], after[:11], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(before[11], after[11])


@torch.no_grad()
def test_prefill_and_steps_are_hidden_with_rows_repeated_and_dropped(model: CausalLM) -> None:
    texts = tokens(3, 7, 1)

    def check(states: torch.Tensor) -> None:
        wanted = torch.stack([model(Packed.of([text]))[-1] for text in texts])
        torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-5)

    states, cache = model.prefill(Packed.of(texts), capacity=3)
    check(states)
    for rows in ([0, 1, 2], [2, 0, 0, 1], [3]):
        cache = cache.select(torch.tensor(rows))
        texts = [[*texts[row], 4 + place] for place, row in enumerate(rows)]
        check(model.step(torch.tensor([text[-1] for text in texts]), cache))


@pytest.mark.parametrize("kind", ["gpt_neox", "gemma2"])
@torch.no_grad()
def test_rotary_positions_and_a_soft_cap_give_the_models_logits(kind: str) -> None:
    model = CausalLM(peer_of(kind))
    texts = tokens(9, 4)
    logits = model.logits(model(Packed.of(texts)))
    torch.testing.assert_close(logits, torch.cat([alone(model, text) for text in texts]), rtol=1e-4, atol=1e-5)


def test_dropout_stays_off() -> None:
    model = CausalLM(peer_of("gpt_neox")).train()
    packed = Packed.of(tokens(9))
    assert not any(part.training for part in model.model.modules())
    assert torch.equal(model(packed), model(packed))


@torch.no_grad()
def test_a_saved_folder_opens_with_the_same_logits(model: CausalLM, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = CausalLM.open(tmp_path)
    packed = Packed.of(tokens(6, 4))
    assert torch.equal(again.logits(again(packed)), model.logits(model(packed)))
    assert (tmp_path / "model.safetensors").is_file()


def test_a_model_that_sees_the_future_is_refused() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=61, is_decoder=False, **sizes)
    model = transformers.BertLMHeadModel(config)
    torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight)
    with pytest.raises(UserError, match="'bert'"):
        CausalLM(model)


def test_logits_that_the_head_alone_does_not_give_are_refused() -> None:
    model = peer_of("gpt2")
    plain = model.forward

    def shifted(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits + 1
        return out

    model.forward = shifted
    with pytest.raises(UserError, match="'gpt2'"):
        CausalLM(model)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        CausalLM.open(tmp_path)


# ------------------------------------------------------------------------------------- Mamba-2
@pytest.fixture(scope="module")
def mamba2() -> CausalLM:
    sizes = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8, "chunk_size": 8}
    heads = {"num_heads": 4, "head_dim": 8, "n_groups": 1}  # of expand * hidden_size = 32
    torch.manual_seed(0)
    peer = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes, **heads))
    with torch.no_grad():
        for weight in peer.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
    return CausalLM(peer)


def mamba2_texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 31, (n,), generator=generator).tolist() for n in (11, 2, 7, 1)]


@torch.no_grad()
def test_packed_mamba2_texts_do_not_see_each_other(mamba2: CausalLM) -> None:
    found = mamba2.logits(mamba2(Packed.of(mamba2_texts())))
    wanted = torch.cat([mamba2.model(input_ids=torch.tensor([text])).logits[0] for text in mamba2_texts()])
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mamba2_steps_equal_the_whole_text(mamba2: CausalLM) -> None:
    """Rows of different lengths, written side by side."""
    hidden, cache = mamba2.prefill(Packed.of(mamba2_texts()), 3)
    grown = mamba2_texts()
    for new in ([4, 5, 6, 7], [8, 9, 10, 11]):
        for row, text in enumerate(grown):
            torch.testing.assert_close(hidden[row], mamba2(Packed.of([text]))[-1], rtol=1e-5, atol=1e-5)
        hidden = mamba2.step(torch.tensor(new), cache)
        grown = [[*text, token] for text, token in zip(grown, new, strict=True)]
