"""Fast paths read weights, so they are off wherever a layer is not as it was built: its own result counts then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from accord.kernels import decoding, transformer_training
from accord.models import mamba as mamba_module
from accord.models.backbone import Backbone
from accord.models.mamba import Mamba, MambaConfig
from accord.models.quantized import sampling_copy
from accord.models.transformer import Transformer
from accord.models.transformer_config import TransformerConfig
from accord.models.transformer_kernels import KNOWN
from accord.types import Packed

PROMPTS = [(1, 2, 3), (4,), tuple(range(5, 40)), (9, 8, 7, 6)]
PACKED = Packed.of([*map(list, PROMPTS), [7, 8]], [-1, -1, -1, -1, 0])


class Adapted(nn.Module):
    """A linear layer with a low-rank addition, as LoRA makes it; it has no weight of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]


class Louder(nn.Linear):
    """A linear layer that does more than its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Sharded(nn.Parameter):
    """Another type of parameter, as FSDP's shards are."""


def doubled(*given: Any) -> Any:
    """A hook that doubles what a layer gives."""
    return 2 * given[-1]


def patch_forward(layer: nn.Module) -> None:
    plain = layer.forward
    layer.forward = lambda *given: 2 * plain(*given)  # type: ignore[method-assign]


def adapt(model: Transformer) -> None:
    model.layers[1].self_attn.qkv_proj = Adapted(model.layers[1].self_attn.qkv_proj)


def widen(model: Transformer) -> None:
    model.layers[1].mlp.down_proj = model.layers[1].mlp.down_proj.double()


def shard(model: Transformer) -> None:
    norm = model.layers[0].input_layernorm
    norm.weight = Sharded(norm.weight.detach())


# Every change of a layer, and whether the result of the model moves with it.
CHANGES: dict[str, tuple[Callable[[Transformer], Any], bool]] = {
    "adapter": (adapt, True),
    "subclass": (lambda m: setattr(m.layers[0].mlp.down_proj, "__class__", Louder), True),
    "hook on a linear layer": (lambda m: m.layers[0].mlp.gate_up_proj.register_forward_hook(doubled), True),
    "hook on a norm": (lambda m: m.layers[1].input_layernorm.register_forward_hook(doubled), True),
    "hook on the last norm": (lambda m: m.norm.register_forward_hook(doubled), True),
    "hook on the embedding": (lambda m: m.embed_tokens.register_forward_hook(doubled), True),
    "hook before attention": (lambda m: m.layers[0].self_attn.register_forward_pre_hook(lambda *_: None), False),
    "hook on a block": (lambda m: m.layers[0].register_forward_hook(doubled), True),
    "backward hook": (lambda m: m.layers[1].mlp.register_full_backward_hook(lambda *_: None), False),
    "parametrization": (
        lambda m: parametrize.register_parametrization(m.layers[0].mlp.down_proj, "weight", Doubled()),
        True,
    ),
    "another forward": (lambda m: patch_forward(m.layers[0].mlp), True),
    "another type of parameter": (shard, False),
}


def model_of(config: TransformerConfig | None = None) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config or TransformerConfig(97, 64, 2, 4, 2, 32, 96)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6) if weight.ndim == 2 else weight.add_(0.3 * torch.randn_like(weight))
    return model


@contextmanager
def kernels_forbidden() -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise AssertionError("a kernel computed a model that it does not know")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer_training, "run_layers", fail)
        patch.setattr(decoding.Decoder, "step", fail)
        patch.setattr(decoding, "MIN_WORK_FOR_JIT", 0)
        yield


def stepped(model: Transformer, packed: Packed) -> Tensor:
    """The hidden states after one more token for each prompt."""
    _, cache = model.prefill(packed, 2)
    return model.step(torch.arange(len(packed.last)), cache)


def test_a_model_as_built_runs_in_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MIN_WORK_FOR_JIT", 0)
    model = model_of()
    with kernels_forbidden():
        with pytest.raises(AssertionError, match="a kernel"):
            model(PACKED)
        with pytest.raises(AssertionError, match="a kernel"):
            stepped(model, Packed.of(PROMPTS))
    model.register_forward_hook(lambda *_: None)  # runs around the whole model, whatever computes it
    assert model.has_kernels()


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layer_is_called(change: str) -> None:
    apply, moves = CHANGES[change]
    model = model_of()
    before, before_step = model(PACKED).detach(), stepped(model, Packed.of(PROMPTS))
    apply(model)
    with kernels_forbidden():
        states, step = model(PACKED), stepped(model, Packed.of(PROMPTS))
    torch.testing.assert_close(states, model.forward_plain(PACKED))
    texts = Packed.of([[*prompt, row] for row, prompt in enumerate(PROMPTS)])
    torch.testing.assert_close(step, model.forward_plain(texts)[texts.last].detach(), rtol=0, atol=1e-4)
    for found, known in ((states, before), (step, before_step)):
        assert torch.allclose(found, known, rtol=1e-3, atol=1e-3) is not moves


def test_weights_of_another_dtype_are_left_to_their_layers() -> None:
    model = model_of()
    widen(model)
    assert not model.has_kernels()


def test_counting_operations_does_not_change_them() -> None:
    model = model_of()
    with FlopCounterMode(display=False):
        assert model.has_kernels()


def test_a_subclass_is_not_known() -> None:
    class Other(Transformer):
        pass

    other = Other(model_of().config)
    assert not other.has_kernels()
    assert other.head_weight() is None


def test_frozen_layers_stay_in_kernels_and_get_no_gradient() -> None:
    model = model_of()
    for name, weight in model.named_parameters():
        weight.requires_grad_("layers.1" in name)
    assert model.has_kernels()
    grads = {}
    for form in (model, model.forward_plain):
        model.zero_grad()
        form(PACKED).square().sum().backward()
        grads[form] = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert set(grads[model]) == {name for name, _ in model.named_parameters() if "layers.1" in name}
    for name, grad in grads[model.forward_plain].items():
        torch.testing.assert_close(grads[model][name], grad, rtol=1e-3, atol=1e-3 * float(grad.abs().max()))


def test_a_bias_that_the_training_kernel_ignores_is_added() -> None:
    model = model_of()
    plain, model.layers[0].mlp.down_proj = model.layers[0].mlp.down_proj, nn.Linear(96, 64)
    model.layers[0].mlp.down_proj.weight = plain.weight
    torch.nn.init.ones_(model.layers[0].mlp.down_proj.bias)
    torch.testing.assert_close(model(PACKED), model.forward_plain(PACKED))


# ------------------------------------------------------------------ heads
@pytest.mark.parametrize("tied", [True, False])
def test_a_changed_head_is_not_read(tied: bool) -> None:
    model = model_of(TransformerConfig(97, 64, 2, 4, 2, 32, 96, tied=tied))
    assert model.head_weight() is not None
    head = model.embed_tokens if tied else model.lm_head
    head.register_forward_hook(doubled)
    assert model.head_weight() is None


def test_a_wrapped_head_gives_the_logits() -> None:
    model, hidden = model_of(TransformerConfig(97, 64, 2, 4, 2, 32, 96, tied=False)), torch.randn(3, 64)
    model.lm_head = Adapted(model.lm_head)  # type: ignore[assignment]
    assert model.head_weight() is None
    torch.testing.assert_close(model.logits(hidden), model.lm_head(hidden))


# ------------------------------------------------------------------ configs
@dataclass(frozen=True, slots=True)
class Scaled(TransformerConfig):
    """A config with a field that no kernel knows."""

    attention_scale: float = 2.0


def test_kernels_follow_every_field_of_the_config() -> None:
    assert {field.name for field in fields(TransformerConfig)} == KNOWN
    assert {field.name for field in fields(MambaConfig)} == mamba_module.KNOWN


def test_a_config_with_an_unknown_field_turns_kernels_off() -> None:
    model = model_of(Scaled(97, 64, 2, 4, 2, 32, 96))
    assert model.head_weight() is None
    with kernels_forbidden():
        torch.testing.assert_close(model(PACKED), model.forward_plain(PACKED))
        stepped(model, Packed.of(PROMPTS))


# ------------------------------------------------------------------ sampling copies
def test_a_sampling_copy_is_stepped_in_kernels_until_a_layer_changes() -> None:
    copy = sampling_copy(model_of(), "bfloat16")
    assert copy.has_kernels()
    copy.layers[0].mlp.down_proj.register_forward_hook(doubled)
    with kernels_forbidden():
        stepped(copy, Packed.of(PROMPTS))


# ------------------------------------------------------------------ Mamba
def mamba_of(config: MambaConfig | None = None) -> Mamba:
    torch.manual_seed(0)
    return Mamba(config or MambaConfig(97, 32, 2)).eval()


@pytest.mark.parametrize("kind", ["hook", "adapter"])
def test_a_changed_convolution_is_called(kind: str) -> None:
    model = mamba_of()
    before = model(PACKED).detach()
    for layer in model.layers:
        if kind == "hook":
            layer.mixer.conv1d.register_forward_hook(doubled)  # type: ignore[union-attr]
        else:
            layer.mixer.conv1d = nn.Sequential(layer.mixer.conv1d)  # type: ignore[union-attr]
    states = model(PACKED)
    assert torch.allclose(states, before, rtol=1e-4, atol=1e-5) is (kind == "adapter")
    _, cache = model.prefill(Packed.of(PROMPTS), 2)
    texts = Packed.of([[*prompt, row] for row, prompt in enumerate(PROMPTS)])
    torch.testing.assert_close(model.step(torch.arange(4), cache), model(texts)[texts.last].detach())


@dataclass(frozen=True, slots=True)
class Clamped(MambaConfig):
    """A config with a field that no kernel knows."""

    dt_limit: float = 1.0


def test_a_mamba_with_an_unknown_field_is_stepped_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = mamba_of(), mamba_of(Clamped(97, 32, 2))
    wanted = model.step(torch.arange(4), model.prefill(Packed.of(PROMPTS), 2)[1])
    monkeypatch.setattr(mamba_module, "conv_step", None)
    found = other.step(torch.arange(4), other.prefill(Packed.of(PROMPTS), 2)[1])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_wrapped_head_of_mamba_gives_the_logits() -> None:
    model, hidden = mamba_of(MambaConfig(97, 32, 2, tied=False)), torch.randn(3, 32)
    model.lm_head = Adapted(model.lm_head)  # type: ignore[assignment, arg-type]
    torch.testing.assert_close(model.logits(hidden), model.lm_head(hidden))


def test_hooks_of_a_block_of_mamba_run() -> None:
    model, seen = mamba_of(), []
    model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    model(PACKED)
    assert seen == [1]


# ------------------------------------------------------------------ shards
@pytest.fixture
def group() -> Iterator[None]:
    """This process as the only one of a group."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("make", [lambda: model_of(), lambda: mamba_of()], ids=["transformer", "mamba"])
def test_a_sharded_model_gives_the_states_and_gradients_of_the_whole(make: Callable[[], Backbone]) -> None:
    whole, sharded = make(), make()
    for layer in sharded.layers:  # type: ignore[union-attr]
        fully_shard(layer)
    fully_shard(sharded)
    states = [model(PACKED) for model in (sharded, whole)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)
    for found in states:
        found.square().sum().backward()
    for ours, plain in zip(sharded.parameters(), whole.parameters(), strict=True):
        assert isinstance(ours, DTensor)
        torch.testing.assert_close(ours.grad.full_tensor(), plain.grad, rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]
