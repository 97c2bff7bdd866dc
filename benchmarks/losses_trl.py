"""SFT, reward model and DPO training steps against TRL's trainers: same rows, weights, AdamW and clipping, alternating runs.

    python benchmarks/losses_trl.py                  tiny (three rounds, also allocator-tuned) and SmolLM2 (two rounds)
    python benchmarks/losses_trl.py --quick          tiny as installed, three rounds of two steps
    python benchmarks/losses_trl.py --size smollm2   the real weights alone; --only dpo: one comparison
    python benchmarks/losses_trl.py --tuned          tiny with glibc's allocator set to retain memory, on both sides
    python benchmarks/losses_trl.py --threads 2      two threads; the ratio is of wall seconds then

tiny: a Llama of width 128, 4 layers, vocabulary 4096, rows truncated at 256 tokens.  smollm2: the 135M weights (extra
smollm2), truncated at 512.  Rows of random words: prompts of 20 to 200 tokens (median 60), replies of 10 to 300 (median
90), lognormal.  TRL runs without gradient checkpointing, which is faster here.  Each run is a separate
process that takes 4 steps (SmolLM2: 1) after a warm-up step; CPU seconds and peak memory are those of the process.
In float32 the losses of all steps must agree to 1e-4 relative, or the row is not met; in bfloat16, which neither side
computes as float32 does, to 5e-2.  SmolLM2 in bfloat16 (SFT, reward, DPO) is measured where the processor multiplies
it, or with --bf16; elsewhere float32 stands in, at the bars of bfloat16.  Rows of memory: TRL's peak over ours.
Needs the extra oracles.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from losses_sides import SIZES
from side_by_side import Figures, finish, losses_apart, row, run, say

SIDES = str(Path(__file__).with_name("losses_sides.py"))


@dataclass(frozen=True)
class Case:
    size: str
    kind: str
    bf16: bool
    tuned: bool
    at_least: float
    aim: float
    memory: tuple[float, float] | None = None  # at least, aim: theirs over ours

    @property
    def name(self) -> str:
        ending = "_tuned" if self.tuned else ""
        return f"{self.kind}_{self.size}_b{SIZES[self.size].batch[self.kind]}_{'bf16' if self.bf16 else 'fp32'}{ending}"


CASES = (
    Case("tiny", "sft", False, False, 2.3, 4.0),
    Case("tiny", "reward", False, False, 1.4, 2.5),
    Case("tiny", "dpo", False, False, 3.0, 5.0),
    Case("tiny", "sft", False, True, 1.6, 3.0),
    Case("tiny", "reward", False, True, 1.4, 2.5),
    Case("tiny", "dpo", False, True, 2.0, 3.5),
    Case("smollm2", "sft", True, False, 2.0, 3.0, (1 / 0.75, 2.0)),
    Case("smollm2", "reward", True, False, 1.8, 3.0),
    Case("smollm2", "dpo", False, False, 2.2, 4.0, (1 / 0.6, 2.5)),
    Case("smollm2", "dpo", True, False, 2.7, 4.0),
)


def selected_cases(options: argparse.Namespace) -> list[Case]:
    """What to run, float32 in place of bfloat16 where that is emulated."""
    from accord.runtime.device import has_bfloat16_instructions

    sizes = [options.size] if options.size else ["tiny"] if options.quick else ["tiny", "smollm2"]
    cases = [c for c in CASES if c.size in sizes and options.only in (None, c.kind)]
    if options.tuned or options.quick or options.threads > 1:
        cases = [c for c in cases if c.tuned == options.tuned]
    if not (options.bf16 or has_bfloat16_instructions()):
        if any(c.bf16 for c in cases):
            print("this processor has no bfloat16 products: SmolLM2 is measured in float32 (--bf16 measures it anyway)")
        floats = {(c.size, c.kind) for c in cases if not c.bf16}
        cases = [replace(c, bf16=False) for c in cases if not (c.bf16 and (c.size, c.kind) in floats)]
    return cases


def compare(case: Case, folder: str, rounds: int, threads: int, quick: bool) -> list[Figures]:
    common = ["--kind", case.kind, "--size", case.size, "--folder", folder, "--threads", str(threads)]
    common += ["--bf16"] if case.bf16 else []
    common += ["--steps", "2"] if quick else []

    def side(name: str) -> Figures:
        return run([SIDES, "--side", name, *common], threads, case.tuned)

    runs = [(side("accord"), side("trl")) for _ in range(rounds)]
    key = "cpu_s" if threads == 1 else "wall_s"
    apart, allowed = losses_apart(runs), 5e-2 if case.bf16 else 1e-4
    name = case.name if threads == 1 else f"{case.name}_threads{threads}"
    more = {who: {k: [r[i][k] for r in runs] for k in ("wall_s", "rss_mb")} for i, who in enumerate(("ours", "trl"))}
    line = row(name, runs, key, case.at_least, case.aim, loss_apart=apart, each=more)
    line["met"] = line["met"] and apart < allowed
    if not case.bf16 and threads == 1:
        line["gflops"] = runs[0][0]["gflop"] / line[key]["accord"]  # of the matrix products, per CPU second
    ours, theirs = line[key]["accord"], line[key]["peer"]
    memory = row(f"{name}_memory", runs, "rss_mb", *(case.memory or (0.0, 0.0)))
    mb = memory["rss_mb"]
    say(line, f" {key} a step {ours:.2f} / {theirs:.2f}  MB {mb['accord']:.0f} / {mb['peer']:.0f}  losses {apart:.0e}")
    if case.memory is None or threads > 1:
        return [line]
    memory = {**memory, "at_least": round(memory["at_least"], 2)}
    say(memory)
    return [line, memory]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), help="one model")
    parser.add_argument("--only", choices=["sft", "reward", "dpo"], help="one comparison")
    parser.add_argument("--rounds", type=int, default=0, help="runs of each side (tiny 3, SmolLM2 2)")
    parser.add_argument("--quick", action="store_true", help="tiny, as installed, two steps")
    parser.add_argument("--tuned", action="store_true", help="both sides with an allocator that keeps its memory")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 even where it is emulated")
    parser.add_argument("--threads", type=int, default=1, help="threads; above one the ratio is of wall seconds")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    lines = []
    with tempfile.TemporaryDirectory() as place:
        written: set[str] = set()
        for case in selected_cases(options):
            folder = str(Path(place) / case.size)
            if case.size not in written:
                run([SIDES, "--side", "write", "--size", case.size, "--folder", folder], 1, False)
                written.add(case.size)
            rounds = options.rounds or (3 if case.size == "tiny" else 2)
            lines += compare(case, folder, rounds, options.threads, options.quick)
    return finish(lines)


if __name__ == "__main__":
    sys.exit(main())
