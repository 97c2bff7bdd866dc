"""How often a reward model agrees with the newest votes, measured in a process of its own so that the page stays quick.

``python -m accord.labeling.reward_check [MODEL]`` reads lines of JSON {"prompt", "chosen", "rejected"} and prints one
object: {"model", "right", "votes"}.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from threading import Lock, Thread
from typing import Any

from accord.data.messages import template_columns, template_inputs
from accord.data.turns import Turns
from accord.errors import UserError
from accord.feedback.agreement import agreement, noise_ceiling, wilson
from accord.feedback.entities import VoteRow
from accord.io.finite_json import dumps

NEWEST = 500
"""Votes that are compared, of those for one side."""
LONGEST = 3600.0
"""Seconds that a comparison may take."""


class RewardCheck:
    """The comparison of a running page: at most one at a time, and the result of the last one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._state: dict[str, Any] = {"state": "none"}

    def state(self) -> dict[str, Any]:
        """{"state": none, running, failed (with "error") or done (with the figures)}."""
        with self._lock:
            return dict(self._state)

    def start(self, rows: Sequence[VoteRow], model: str) -> None:
        """Starts a comparison, unless one is running.  ``model``: empty for the registry's newest reward model."""
        with self._lock:
            if self._state["state"] == "running":
                return
            self._state = {"state": "running"}
        Thread(target=self._run, args=(list(rows), model), daemon=True).start()

    def _run(self, rows: list[VoteRow], model: str) -> None:
        try:
            found = {"state": "done", **compare(rows, model)}
        except UserError as error:
            found = {"state": "failed", "error": str(error)}
        except Exception as error:  # whatever it is, the page must not wait for ever
            found = {"state": "failed", "error": f"the comparison ended early ({type(error).__name__}: {error})."}
        with self._lock:
            self._state = found


def compare(rows: Sequence[VoteRow], model: str) -> dict[str, Any]:
    """Accuracy on the newest votes for one side with Wilson's interval, beside the noise ceiling.  Raises UserError."""
    newest = sorted((r for r in rows if r.choice in ("a", "b")), key=lambda r: r.vote)[-NEWEST:]
    command = [sys.executable, "-m", "accord.labeling.reward_check", *([model] if model else [])]
    lines = "".join(f"{line}\n" for line in map(_line, newest))
    done = subprocess.run(command, input=lines.encode("ascii"), capture_output=True, timeout=LONGEST, check=False)
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason was given"]
        raise UserError(words[-1].removeprefix("accord: "))
    found = json.loads(done.stdout.splitlines()[-1])
    between = agreement(rows, decisive=True).value
    return {
        "model": found["model"],
        "accuracy": asdict(wilson(found["right"], found["votes"])),
        "noise_ceiling": None if between is None else noise_ceiling(between),
        "agreement": between,
    }


def _line(row: VoteRow) -> str:
    chosen, rejected = (row.a, row.b) if row.choice == "a" else (row.b, row.a)
    columns = template_columns(Turns(row.prompt, row.inputs))
    asked = {"prompt": [dict(m) for m in row.prompt], **columns}
    return dumps({**asked, "chosen": chosen.text, "rejected": rejected.text})


# ------------------------------------------------------------------ the other process
def newest_reward_model() -> tuple[str, str]:
    """Label and folder of the registry's newest reward model.  Raises UserError where there is none."""
    from accord.registry.store import open_store

    found = max(open_store().list(kind="reward"), key=lambda version: version.created, default=None)
    if found is None:
        raise UserError(
            "no reward model in the registry; train one with 'accord reward', or name one with --reward-model."
        )
    return found.label, str(found.folder)


def score(lines: Iterable[str], model: str) -> dict[str, Any]:
    """The number of votes that a reward model agrees with; equal scores are half right.  Raises UserError."""
    from accord.api import LoadedReward, load

    label, folder = (model, model) if model else newest_reward_model()
    loaded = load(folder)
    if not isinstance(loaded, LoadedReward):
        raise UserError(f"{label}: is a language model; name a reward model.")
    rows = [row for row in map(json.loads, lines) if _is_text(row)]
    prompts = [Turns(row["prompt"], template_inputs(row)) for row in rows]
    chosen, rejected = (loaded.scores(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
    right = sum((a > b) + 0.5 * (a == b) for a, b in zip(chosen, rejected, strict=True))
    return {"model": label, "right": right, "votes": len(rows)}


def _is_text(row: dict[str, Any]) -> bool:
    """Whether no text has half of a surrogate pair, which no tokenizer takes."""
    texts = [row["chosen"], row["rejected"], *(m["content"] for m in row["prompt"])]
    return not any("\ud800" <= c <= "\udfff" for text in texts for c in text)


def main() -> int:
    try:
        found = score(sys.stdin, sys.argv[1] if len(sys.argv) > 1 else "")
    except UserError as error:
        print(f"accord: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
