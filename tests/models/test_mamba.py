"""Mamba against transformers, against itself alone, in a pack, under a shared prompt, and one token at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from accord.errors import UserError
from accord.kernels import selective_scan
from accord.models import mamba as mamba_module
from accord.models.backbone import Backbone
from accord.models.hf_format import read_weights, write_weights
from accord.models.mamba import Mamba, MambaConfig, causal_conv, small_mamba
from accord.types import Packed

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything holds with the kernels and without."""
    if request.param == "torch":
        monkeypatch.setattr(selective_scan, "runs_compiled", lambda *_: False)
        monkeypatch.setattr(mamba_module, "runs_compiled", lambda *_: False)
    return request.param


def tiny(**changes: object) -> Mamba:
    """A Mamba that is no longer at its symmetric start: norms, D and biases moved."""
    torch.manual_seed(0)
    model = Mamba(MambaConfig(**{"vocab_size": 23, "d_model": 16, "n_layers": 3, "d_state": 4, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.embeddings.weight.normal_()
    return model


def words(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 23, (n,), generator=generator).tolist() for n in lengths]


def alone(model: Mamba, text: list[int]) -> Tensor:
    return model(Packed.of([text]))


# ------------------------------------------------------------------------------------------- transformers
@pytest.mark.oracle
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "tied": False,
            "use_bias": True,
            "use_conv_bias": False,
            "expand": 3,
            "dt_rank": 5,
            "d_conv": 3,
            "norm_eps": 1e-3,
        },
    ],
    ids=["plain", "odd"],
)
def test_transformers_opens_a_saved_folder_with_the_same_logits(
    tmp_path: Path, changes: dict[str, object], way: str
) -> None:
    from transformers import AutoModelForCausalLM, MambaForCausalLM

    model = tiny(**changes)
    model.save(str(tmp_path))
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs) is MambaForCausalLM
    assert not report["missing_keys"] - ({"lm_head.weight"} if model.config.tied else set())
    assert not report["unexpected_keys"]
    texts = words(11, 7)
    logits = model.logits(model(Packed.of(texts))).split([11, 7])
    for text, found in zip(texts, logits, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found, theirs(torch.tensor([text])).logits[0], rtol=1e-4, atol=1e-4)
    again = Mamba.open(str(tmp_path))
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.oracle
@pytest.mark.parametrize("tied", [True, False])
def test_a_transformers_folder_opens_with_the_same_logits(tmp_path: Path, tied: bool) -> None:
    from transformers import MambaConfig as TheirConfig
    from transformers import MambaForCausalLM

    torch.manual_seed(3)
    config = TheirConfig(
        vocab_size=23,
        hidden_size=16,
        state_size=4,
        num_hidden_layers=2,
        tie_word_embeddings=tied,
        eos_token_id=5,
        pad_token_id=6,
        bos_token_id=7,
    )
    theirs = MambaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model = Mamba.open(str(tmp_path))
    assert (model.config.tied, model.config.eos_ids, model.config.pad_id, model.config.bos_id) == (tied, (5,), 6, 7)
    (text,) = words(13)
    with torch.no_grad():
        expected = theirs(torch.tensor([text])).logits[0]
    torch.testing.assert_close(model.logits(alone(model, text)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.oracle
def test_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import MambaForCausalLM

    model = tiny(n_layers=2)
    model.save(str(tmp_path))
    theirs = MambaForCausalLM.from_pretrained(tmp_path)
    (text,) = words(9)
    weights = torch.randn(9, 23, generator=torch.Generator().manual_seed(4))
    (model.logits(alone(model, text)) * weights).sum().backward()
    (theirs(torch.tensor([text])).logits[0] * weights).sum().backward()
    expected = dict(theirs.backbone.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = expected[name].grad.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


# ------------------------------------------------------------------------------------------- packs
def test_a_small_mamba_is_a_backbone_of_its_sizes() -> None:
    model = small_mamba(32, 2, 50, eos_id=1, pad_id=0)
    assert isinstance(model, Backbone)
    assert (model.width, model.vocab_size, model.config.tied) == (32, 50, True)
    assert (model.config.eos_ids, model.config.pad_id, model.config.dt_rank) == ((1,), 0, 2)


def test_packed_texts_have_the_logits_of_each_text_alone(way: str) -> None:
    model, texts = tiny(), words(5, 1, 40, 2, 3)
    found = model(Packed.of(texts)).split([len(t) for t in texts])
    for text, hidden in zip(texts, found, strict=True):
        torch.testing.assert_close(hidden, alone(model, text), **CLOSE)


def test_a_shared_prompt_gives_the_logits_of_separate_texts(way: str) -> None:
    """Prompts shorter and longer than the convolution; a reply that is itself continued."""
    model = tiny()
    p, a, b, q, c, d = words(2, 5, 1, 35, 4, 3)
    shared = model(Packed.of([p, a, b, q, c, d], parents=[-1, 0, 0, -1, 3, 1])).split([2, 5, 1, 35, 4, 3])
    for chain in ([(p, 0), (a, 1)], [(p, 0), (b, 2)], [(q, 3), (c, 4)], [(p, 0), (a, 1), (d, 5)]):
        expected = alone(model, [token for text, _ in chain for token in text])
        torch.testing.assert_close(torch.cat([shared[i] for _, i in chain]), expected, **CLOSE)


def test_the_prompts_gradient_is_the_sum_over_its_replies(way: str) -> None:
    model = tiny()
    p, a, b = words(6, 4, 9)
    weights = torch.randn(25, 16, generator=torch.Generator().manual_seed(2))
    grads = []
    for separate in (True, False):
        model.zero_grad()
        if separate:
            h = torch.cat([alone(model, p + a), alone(model, p + b)])
        else:
            h = model(Packed.of([p, a, b], parents=[-1, 0, 0]))
            h = torch.cat([h[:10], h[:6], h[10:]])
        (h * weights).sum().backward()
        grads.append({name: q.grad.clone() for name, q in model.named_parameters()})
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_no_position_sees_the_future(way: str) -> None:
    model, (text, other) = tiny(), words(30, 30, seed=5)
    before = alone(model, text)
    for cut in (1, 13, 29):
        changed = alone(model, text[:cut] + other[cut:])
        torch.testing.assert_close(changed[:cut], before[:cut], rtol=0, atol=0)
        assert not torch.allclose(changed[cut:], before[cut:])


def test_no_text_reaches_a_neighboring_text(way: str) -> None:
    """A token whose embedding is NaN makes its own text NaN from there on, and nothing else."""
    model = tiny()
    texts = [[1, 2, 3, 4], [5, 6, 22, 7, 8], [9, 10, 11]]
    clean = model(Packed.of(texts))
    with torch.no_grad():
        model.embeddings.weight[22] = math.nan
    poisoned = model(Packed.of(texts))
    safe = torch.tensor([0, 1, 2, 3, 4, 5, 9, 10, 11])
    assert torch.equal(poisoned[safe], clean[safe])
    assert poisoned[6:9].isnan().all()


@pytest.mark.parametrize("changes", [{}, {"tied": False, "use_bias": True}])
def test_every_parameter_gets_a_gradient(changes: dict[str, object], way: str) -> None:
    model = tiny(**changes)
    model.logits(model(Packed.of(words(7, 3)))).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_number_of_threads_changes_no_bit() -> None:
    model, results = tiny(d_model=64, d_state=16), []
    packed = Packed.of(words(60, 40, 70, 30), parents=[-1, 0, 0, -1])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        x = torch.randn(200, 128, generator=torch.Generator().manual_seed(1)).requires_grad_()
        conv = model.layers[0].mixer.conv1d
        y = causal_conv(x, conv.weight, conv.bias, packed.previous)
        grads = torch.autograd.grad(y.square().sum(), [x, conv.weight, conv.bias])
        results.append([y, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_convolution_equals_hand_computed_numbers(way: str) -> None:
    """Weights 1, 10, 100, 1000 spell the last four inputs; below 20 the logistic function still differs from 1."""
    x = torch.tensor([1.0, 2, 3, 4, 5])[:, None].expand(5, 16)
    packed = Packed.of([[0, 0], [0, 0], [0]], parents=[-1, 0, 0])
    weight = torch.tensor([1.0, 10, 100, 1000]).expand(16, 1, 4).clone()
    total = torch.tensor([1000.0, 2100, 3210, 4321, 5210]) / 1e3 - 2
    y = causal_conv(x.contiguous(), weight / 1e3, torch.full((16,), -2.0), packed.previous)
    torch.testing.assert_close(y[:, 3], total * torch.sigmoid(total), rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------- one token at a time
def test_steps_equal_the_scan_over_long_texts(way: str) -> None:
    model, texts = tiny(d_state=16), words(240, 240, 240)
    whole = [alone(model, text) for text in texts]
    hidden, cache = model.prefill(Packed.of([text[:n] for text, n in zip(texts, (1, 3, 20), strict=True)]), 239)
    for row, n in enumerate((1, 3, 20)):
        torch.testing.assert_close(hidden[row], whole[row][n - 1], **CLOSE)
    for i in range(220):
        tokens = torch.tensor([text[n + i] for text, n in zip(texts, (1, 3, 20), strict=True)])
        hidden = model.step(tokens, cache)
    for row, n in enumerate((1, 3, 20)):
        torch.testing.assert_close(hidden[row], whole[row][n + 219], **CLOSE)


def test_a_selected_cache_repeats_drops_and_reorders_rows(way: str) -> None:
    model, (a, b, c) = tiny(), words(4, 2, 6)
    _, cache = model.prefill(Packed.of([a, b, c]), 8)
    model.step(torch.tensor([1, 2, 3]), cache)
    kept = cache.window.clone(), cache.state.clone()
    picked = cache.select(torch.tensor([2, 0, 0]))
    model.step(torch.tensor([4, 5, 6]), picked)
    assert torch.equal(cache.window, kept[0])
    assert torch.equal(cache.state, kept[1])
    picked = picked.select(torch.tensor([1, 2]))
    hidden = model.step(torch.tensor([7, 8]), picked)
    for row, text in enumerate(([*a, 1, 5, 7], [*a, 1, 6, 8])):
        torch.testing.assert_close(hidden[row], alone(model, text)[-1], **CLOSE)


def test_one_prompt_read_once_under_many_replies(way: str) -> None:
    model, (prompt,) = tiny(), words(9)
    _, cache = model.prefill(Packed.of([prompt]), 3)
    cache = cache.select(torch.zeros(4, dtype=torch.int64))
    replies = words(3, 3, 3, 3, seed=8)
    for i in range(3):
        hidden = model.step(torch.tensor([reply[i] for reply in replies]), cache)
    for row, reply in enumerate(replies):
        torch.testing.assert_close(hidden[row], alone(model, prompt + reply)[-1], **CLOSE)


def test_prefill_follows_the_tree_of_segments(way: str) -> None:
    model, (p, a) = tiny(), words(1, 2)
    _, cache = model.prefill(Packed.of([p, a], parents=[-1, 0]), 1)
    hidden = model.step(torch.tensor([3, 4]), cache)
    torch.testing.assert_close(hidden[0], alone(model, [*p, 3])[-1], **CLOSE)
    torch.testing.assert_close(hidden[1], alone(model, [*p, *a, 4])[-1], **CLOSE)


def test_short_convolutions_and_odd_widths_give_the_same_logits(way: str) -> None:
    """One tap needs no window; 24 channels fill no whole vectors."""
    for changes in ({"d_conv": 1}, {"d_conv": 2}, {"d_model": 12}):
        model, (text,) = tiny(**changes), words(6)
        whole = alone(model, text)
        hidden, cache = model.prefill(Packed.of([text[:2]]), 4)
        torch.testing.assert_close(hidden[0], whole[1], **CLOSE)
        for t in range(2, 6):
            hidden = model.step(torch.tensor([text[t]]), cache)
            torch.testing.assert_close(hidden[0], whole[t], **CLOSE)


# ------------------------------------------------------------------------------------------- start and mistakes
def test_initial_weights_have_the_published_ranges() -> None:
    torch.manual_seed(0)
    model = small_mamba(64, 9, 30, eos_id=1, pad_id=0)
    mixer = model.layers[4].mixer
    dt = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert dt.min() >= 0.999e-3
    assert dt.max() <= 1.001e-1
    assert dt.log().mean().item() == pytest.approx((math.log(1e-3) + math.log(1e-1)) / 2, abs=0.4)
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert (mixer.D == 1).all()
    assert mixer.dt_proj.weight.abs().max() <= mixer.rank**-0.5
    # uniform on +-1/sqrt(d_inner), then by 1/sqrt(layers) smaller
    assert mixer.out_proj.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 128 * 9), rel=0.05)


def test_a_small_mamba_learns_to_copy() -> None:
    """What came two tokens earlier: needs the convolution and the scan, and gradients of the right sign."""
    torch.manual_seed(0)
    model = small_mamba(32, 2, 8, eos_id=0, pad_id=0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        tokens = torch.randint(0, 8, (16, 12))
        logits = model.logits(model(Packed.of(tokens.tolist()))).view(16, 12, 8)
        loss = torch.nn.functional.cross_entropy(logits[:, 2:].reshape(-1, 8), tokens[:, :-2].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2  # chance: ln 8 = 2.08


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder = str(tmp_path)
    model = tiny()
    model.save(folder)
    config = json.loads((tmp_path / "config.json").read_text())
    state = read_weights(folder)

    def broken(**changes: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))

    broken(model_type="falcon_mamba")
    with pytest.raises(UserError, match="falcon_mamba"):
        Mamba.open(folder)
    broken(hidden_act="gelu")
    with pytest.raises(UserError, match="gelu"):
        Mamba.open(folder)
    broken(hidden_size=None)
    with pytest.raises(UserError, match="hidden_size"):
        Mamba.open(folder)
    broken(num_hidden_layers=4)
    with pytest.raises(UserError, match=r"layers\.3\..* is missing"):
        Mamba.open(folder)
    broken(vocab_size=24)
    with pytest.raises(UserError, match=r"embeddings.weight has shape \(23, 16\), expected \(24, 16\)"):
        Mamba.open(folder)
    broken()
    write_weights(folder, {**state, "backbone.extra": torch.ones(1)})
    with pytest.raises(UserError, match="extra has no place"):
        Mamba.open(folder)
    with pytest.raises(UserError, match="n_layers = 0"):
        MambaConfig(vocab_size=3, d_model=4, n_layers=0)
