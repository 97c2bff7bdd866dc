"""The ledger of a run whose replies were sampled elsewhere: everything that decides its result and depends on timing.

``ledger.jsonl`` holds a line on the run, then a line for each rollout as it is trained on, and at the end the digest of the
final weights.  With the config it is enough to repeat the run on one process (``replay``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from typing_extensions import TypedDict

from accord.errors import UserError
from accord.io.atomic import write_jsonl
from accord.io.finite_json import dumps
from accord.io.readers import read_appended_rows
from accord.io.records import Count, check

NAME: Final = "ledger.jsonl"
FORMAT: Final = 1
REMEDY = "name the ledger.jsonl of a run with rollout.engine=ray, as it was written"


class Header(TypedDict):
    """The first line."""

    format: Count
    seed: int
    threads: Count
    """Of the learner."""
    ranks: Count
    worker_threads: Count
    device: str
    settings: dict[str, Any]
    """Those that change results, with the inputs blanked."""
    inputs: dict[str, str]
    """Config key: digest of what it names."""


class ChunkLine(TypedDict):
    """A chunk of a rollout."""

    chunk: Count
    prompts: list[Count]
    """Their rows."""
    version: Count
    """The rollout before which the weights were published that sampled the first tokens."""
    swaps: list[list[Count]]
    """[position, version]: from this token on these weights sampled."""
    worker: Count


class RolloutLine(TypedDict):
    """A rollout: its chunks in their order of arrival."""

    rollout: Count
    weights: str
    """Digest of the policy's weights when it began."""
    chunks: list[ChunkLine]
    dropped: list[Count]
    """Chunks that were too old."""


class End(TypedDict):
    """The last line of a finished run."""

    end: str
    """Digest of the final weights."""


class Ledger:
    """Writes a ledger, a line at a time; ``header`` makes the first line."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self._header = path, header
        self.lines = 0
        """Written by this run and those that it resumes."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a line; before the first one the file is made new, with the header."""
        if self.lines == 0:
            write_jsonl(self.path, [self._header])
            self.lines = 1
        with self.path.open("a", encoding="utf-8") as file:
            file.write(dumps(line) + "\n")
        self.lines += 1

    def resume(self, lines: int) -> None:
        """Leaves the first ``lines`` lines, those that the saved state knows of.  Raises UserError where there are fewer."""
        if lines == 0:
            return
        rows = read_appended_rows(self.path) if self.path.exists() else []
        if len(rows) < lines:
            raise UserError(
                f"{self.path}: has {len(rows)} lines, and the saved state belongs to {lines}; run without --resume to start"
                " from the beginning."
            )
        write_jsonl(self.path, rows[:lines])
        self.lines = lines


def read_ledger(path: Path) -> tuple[Header, list[RolloutLine], str]:
    """The header, the rollouts, and the digest of the final weights (empty where the run did not end).

    Raises UserError naming file and line where it is missing, damaged, or of another format.
    """
    if path.is_dir():
        path = path / NAME
    if not path.exists():
        raise UserError(f"{path}: no such file; {REMEDY}.")
    rows = read_appended_rows(path)
    if not rows:
        raise UserError(f"{path}: is empty; {REMEDY}.")
    header: Any = check(rows[0], Header, f"{path}, line 1", REMEDY)
    if header["format"] != FORMAT:
        raise UserError(f"{path}, line 1: format {header['format']}, and this version of accord reads {FORMAT}.")
    end = ""
    if "end" in rows[-1]:
        end = str(check(rows.pop(), End, f"{path}, line {len(rows) + 1}", REMEDY)["end"])
    lines: list[Any] = []
    for number, row in enumerate(rows[1:]):
        line = check(row, RolloutLine, f"{path}, line {number + 2}", REMEDY)
        if line["rollout"] != number:
            raise UserError(f"{path}, line {number + 2}: rollout {line['rollout']}, expected {number}; {REMEDY}.")
        lines.append(line)
    return header, lines, end


def require_same_run(path: Path, ledger: Header, mine: Header) -> None:
    """Raises UserError where a ledger is of a run with other settings, inputs or ranks than this one's ``mine``."""
    checked = (
        ("settings", _flat(ledger["settings"]), _flat(mine["settings"])),
        ("inputs", ledger["inputs"], mine["inputs"]),
    )
    for what, theirs, ours in checked:
        for key in sorted({*theirs, *ours} - {"rollout.replay"}):
            if theirs.get(key) != ours.get(key):
                said = (
                    f"{theirs.get(key)!r}, and this run has {ours.get(key)!r}"
                    if what == "settings"
                    else "another content"
                )
                raise UserError(f"{path}: the run that wrote it had {key} = {said}; replay with the same {what}.")
    if ledger["seed"] != mine["seed"]:
        raise UserError(f"{path}: the run that wrote it had seed={ledger['seed']}; replay with the same seed.")
    if ledger["ranks"] != mine["ranks"]:
        raise UserError(
            f"{path}: its learner had {ledger['ranks']} processes; replay with parallel.nproc={ledger['ranks']}, since sums over"
            " another number of processes round differently."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to plain values."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        result.update(_flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value})
    return result


def versions_needed(lines: Sequence[RolloutLine], after: int) -> set[int]:
    """The versions of the weights that rollouts from ``after`` on were sampled from."""
    chunks = [chunk for line in lines[after:] for chunk in line["chunks"]]
    return {chunk["version"] for chunk in chunks} | {swap[1] for chunk in chunks for swap in chunk["swaps"]}
