"""benchmarks/gpu.py and gpu_sections/: model FLOPs, what is wrong, the table, a section that fails or does not end."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def part() -> Iterator[Callable[[str], ModuleType]]:
    """A file of benchmarks/gpu_sections, imported as the command imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield lambda name: importlib.import_module(f"gpu_sections.{name}")


def test_model_flops_are_those_that_torch_counts(part: Callable[[str], ModuleType]) -> None:
    """A forward pass of the small Llama; torch does not count attention on a CPU, whose two causal products are 2 T² W."""
    from torch.utils.flop_counter import FlopCounterMode

    sides, s = part("sides"), part("bench").SMALL
    bench = part("bench").Bench(torch.device("cpu"), s, 1.0)
    model = sides.llama(bench)
    ids = torch.randint(3, s.vocab, (1, 32))
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    attention = sides.flops(bench, [(0, 32)], 2) - sides.flops(bench, [(0, 16)] * 2, 2)  # 2 * 2 layers width 16 * 16
    assert attention == 2 * 2 * s.layers * s.width * 16 * 16
    expected = sides.flops(bench, [(0, 32)], 2) - 2 * s.layers * s.width * 32 * 32
    assert counted.get_total_flops() == pytest.approx(expected, rel=1e-6)


def test_a_row_is_wrong_where_the_sides_differ_or_it_failed(gpu: ModuleType) -> None:
    assert not gpu.is_wrong({"row": "a"})
    assert not gpu.is_wrong({"row": "a", "apart": 1e-3, "at_most": 1e-2})
    assert gpu.is_wrong({"row": "a", "apart": 1e-1, "at_most": 1e-2})
    assert gpu.is_wrong({"row": "a", "apart": float("nan"), "at_most": 1e-2})
    assert gpu.is_wrong({"row": "a", "at_most": 1e-2})
    assert gpu.is_wrong({"row": "a", "error": "broke off"})


def test_the_table_shows_the_ratio_and_marks_what_is_wrong(gpu: ModuleType) -> None:
    good = {
        "row": "sft",
        "ours_tokens_per_s": 3000.0,
        "plain_tokens_per_s": 1500.0,
        "ours_mfu": 0.4,
        "apart": 0.0,
        "at_most": 1.0,
    }
    lines = gpu.table(
        [good, {**good, "row": "dpo", "apart": 2.0}, {"row": "ppo", "error": "out of memory"}]
    ).splitlines()
    assert lines[2] == "| sft | 3,000 | 1,500 | 2.00 × | 40.0% |  |  |  | 0.0e+00 | 1e+00 |"
    assert "**2.0e+00**" in lines[3]
    assert "**out of memory**" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


def test_a_section_that_fails_or_does_not_end_costs_only_itself(gpu: ModuleType) -> None:
    options = argparse.Namespace(device="no-such-device", small=True)
    (failed,) = gpu.section("scan", options, 1.0, 120.0)
    assert "no-such-device" in failed["error"]
    (late,) = gpu.section("scan", options, 1.0, 0.0)
    assert late["error"] == "not finished after 0 s"


def test_the_peak_is_the_data_sheets_where_the_device_is_known(part: Callable[[str], ModuleType]) -> None:
    assert part("machine").known_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert part("machine").known_peak("NVIDIA L40S") == 362e12
    assert part("machine").known_peak("a new one") == 0.0


def test_every_section_has_its_function_and_an_unknown_one_none(
    gpu: ModuleType, part: Callable[[str], ModuleType]
) -> None:
    """The quickest one that compares the sides, in this process."""
    part("bench")  # the folder is on the path
    rows = gpu.run_section("fsdp", "cpu", True, 1.0)
    assert [row["row"] for row in rows] == ["fsdp_one_rank"]
    assert not gpu.is_wrong(rows[0])
    with pytest.raises(KeyError):
        gpu.run_section("none", "cpu", True, 1.0)
