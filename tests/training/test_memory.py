"""Predicted memory against what torch counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from accord.config.common import Optimizer, Parallel
from accord.data.packing import pack_supervised
from accord.data.supervised import SupervisedExample
from accord.errors import UserError
from accord.models.backbone import Backbone
from accord.models.mamba import Mamba, MambaConfig
from accord.models.transformer import Transformer
from accord.training.cross_entropy import cross_entropy
from accord.training.memory import (
    NAMED,
    Layout,
    layout_of,
    layouts,
    memory_table,
    named_size,
    predict,
    require_memory,
    size_of,
)
from accord.training.updater import Updater
from accord.types import Packed

FACTOR = 1.5
"""How far activations may be from what torch counts, as the module says."""
SMALL = replace(NAMED["1B"], vocab_size=512, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=352)


def texts(rows: int, length: int) -> Packed:
    chance = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, 500, (rows, length), generator=chance).tolist()
    return pack_supervised([SupervisedExample(tuple(r), (False, *[True] * (length - 1))) for r in drawn])


def models() -> Iterator[Backbone]:
    yield Transformer(SMALL)
    yield Transformer(replace(SMALL, tied=False, d_ff=512))
    yield Mamba(MambaConfig(512, 128, 4))


def stored_bytes(work: Callable[[], object], model: Backbone) -> int:
    """Bytes of the tensors that autograd stores, without the weights."""
    seen: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        alive.append(x)
        if (place := x.untyped_storage().data_ptr()) not in weights:
            seen[place] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        work()
    return sum(seen.values())


@pytest.mark.parametrize("number", range(3))
def test_weights_gradients_and_moments_are_exact(number: int) -> None:
    model = list(models())[number]
    frozen = Mamba(MambaConfig(64, 32, 1)).requires_grad_(False)
    updater = Updater([(list(model.parameters()), 1e-3)], Optimizer(), 10)
    updater.step([texts(2, 16)], lambda packed: cross_entropy(model, packed))
    memory = predict(size_of(model, model.width, [frozen]), Layout(), 32)
    assert memory.weights == sum(p.numel() * p.element_size() for p in [*model.parameters(), *frozen.parameters()])
    assert memory.gradients == sum(
        p.grad.numel() * p.grad.element_size() for p in model.parameters() if p.grad is not None
    )
    moments = [x for state in updater.optimizer.state.values() for x in state.values() if x.dim()]
    assert memory.moments == sum(x.numel() * x.element_size() for x in moments)


@pytest.mark.parametrize("number", range(3))
def test_activations_are_within_the_stated_factor(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass in torch's operations, as on a GPU and with shards; the CPU's kernels store less."""
    model = list(models())[number]
    monkeypatch.setattr(Transformer, "has_kernels", lambda self: False)
    for rows, length in ((4, 64), (8, 32)):
        packed = texts(rows, length)
        counted = stored_bytes(lambda packed=packed: model(packed).sum(), model)  # type: ignore[misc]
        predicted = predict(replace(size_of(model, model.width), vocab=0), Layout(), len(packed)).activations
        assert 1 / FACTOR < predicted / counted < FACTOR


@pytest.mark.parametrize("reshard", [True, False])
def test_a_device_of_eight_under_fsdp_is_within_the_stated_factor(
    reshard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own counter of FSDP's memory, on rank 0 of a group whose other ranks are not there."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.setattr(Transformer, "has_kernels", lambda self: False)
    model = Transformer(SMALL)
    size = replace(size_of(model, model.width), vocab=0)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        mesh = dist.init_device_mesh("cpu", (8,))
        for layer in [*model.layers, model]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, foreach=True)
        tracker, packed = FSDPMemTracker(model, optimizer), texts(4, 64)
        with tracker:
            for _ in range(2):
                model(packed).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()
        counted = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    finally:
        dist.destroy_process_group()
    predicted = predict(size, Layout(8, "fsdp", reshard=reshard), len(packed)).total
    assert 1 / FACTOR < predicted / counted < FACTOR


def test_the_named_models_have_their_parameters() -> None:
    found = {name: named_size(name).trained for name in NAMED}
    assert found == {"1B": 1_235_814_400, "7B": 6_738_415_616, "13B": 13_015_864_320}


def test_shards_and_offload_divide_the_state_and_nothing_else_grows() -> None:
    size = named_size("7B")
    one, eight = predict(size, Layout(), 512), predict(size, Layout(8, "fsdp"), 512)
    assert eight.weights == -(-one.weights // 8)
    assert eight.activations == one.activations
    offloaded = predict(size, Layout(8, "fsdp", cpu_offload=True), 512)
    assert (offloaded.weights, offloaded.gradients, offloaded.moments) == (0, 0, 0)
    assert offloaded.host == eight.weights + eight.gradients + eight.moments
    assert predict(size, Layout(8, "ddp"), 512) == one
    assert predict(size, Layout(checkpointing=True), 512).activations < one.activations / 4


def test_the_table_shows_what_is_configured_and_every_layout() -> None:
    size = size_of(Transformer(SMALL), SMALL.d_model)
    configured = layout_of(Parallel(nproc=4, strategy="fsdp", cpu_offload=True), False)
    table = memory_table(size, configured, 256)
    assert "fsdp on 4 devices" in table
    for name in ("as configured", *layouts(4, False)):
        assert f"  {name}  " in table
    assert "on the host" in table.splitlines()[3]


def test_a_model_that_does_not_fit_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.training.memory.memory_of", lambda device: 80 * 2**30)
    size, gpu = named_size("7B"), torch.device("cuda")
    with pytest.raises(
        UserError, match=r"the model does not fit: .* take 100\.4 GiB of device memory, and there are 80\.0"
    ):
        require_memory(size, Layout(), gpu)
    require_memory(size, Layout(2, "fsdp"), gpu)
    with pytest.raises(UserError, match="does not fit"):  # processes of one computer share its memory
        require_memory(size, Layout(2, "fsdp"), torch.device("cpu"))
