"""Time and memory of ``accord data`` on 100,000 conversations of about 200 tokens.

    python benchmarks/data_report.py            100,000 rows
    python benchmarks/data_report.py --quick    20,000 rows

    data_report       wall seconds of ``accord data`` per 100,000 rows against the 60 that it may take on two cores
    data_report_mb    how much more memory the first process needs for all rows than for a tenth of them, in MB, against 64

The rows are ChatML conversations over a byte-level BPE of 8,000 pieces that is trained here; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SECONDS, MEGABYTES, TOKENS = 60.0, 64.0, 200
PROCESSES = 2
COMMAND = """\
import resource, sys
from accord.cli import main
code = main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def words(chance: random.Random, number: int = 4000) -> list[str]:
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    return ["".join(chance.choices(letters, weights=range(26, 0, -1), k=chance.randint(2, 9))) for _ in range(number)]


def write_model(folder: Path, known: list[str], chance: random.Random) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((" ".join(chance.choices(known, k=200)) for _ in range(300)), trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}), encoding="utf-8")


def write_rows(path: Path, number: int, known: list[str], chance: random.Random) -> None:
    with path.open("w", encoding="utf-8") as file:
        for _ in range(number):
            asked, answered = (
                " ".join(chance.choices(known, k=k)) for k in (chance.randint(20, 60), chance.randint(60, 100))
            )
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            file.write(json.dumps({"messages": turns}) + "\n")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(rows: Path, model: Path) -> tuple[float, float, float, dict[str, object]]:
    """Wall seconds, CPU seconds of all processes, peak MB of the first one, and the report."""
    options = ["data", str(rows), "--model", str(model), "--json", "--processes", str(PROCESSES)]
    began, before = time.perf_counter(), cpu_seconds()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *options], capture_output=True, text=True, check=False, env=env
    )
    spent = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    code, peak = done.stderr.split()[-2:]
    if code != "0":
        raise SystemExit(f"the rows should be clean, but the exit code is {code}")
    return (
        spent,
        cpu_seconds() - before,
        int(peak) / (1024**2 if sys.platform == "darwin" else 1024),
        json.loads(done.stdout),
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true")
    number = 20_000 if options.parse_args().quick else 100_000
    chance = random.Random(0)
    known = words(chance)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", known, chance)
        few, all_rows = folder / "few.jsonl", folder / "all.jsonl"
        write_rows(few, number // 10, known, chance)
        write_rows(all_rows, number, known, chance)
        _, _, small, _ = measure(few, folder / "model")
        spent, cpu, peak, report = measure(all_rows, folder / "model")
    per_100k, grown = spent * 100_000 / number, peak - small
    lines = [
        {
            "row": "data_report",
            "seconds": per_100k,
            "cpu_seconds": cpu * 100_000 / number,
            "at_most": SECONDS,
            "met": per_100k <= SECONDS,
        },
        {"row": "data_report_mb", "mb": grown, "peak_mb": peak, "at_most": MEGABYTES, "met": grown <= MEGABYTES},
    ]
    print(json.dumps({"rows": number, "tokens": report["tokens"]}))
    for line in lines:
        print(json.dumps(line))
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
