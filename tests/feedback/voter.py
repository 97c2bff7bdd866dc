"""A person who votes until nothing is left, in a process that may be killed at any moment.

``voter.py STORE PROJECT NAME JOURNAL``: each vote is noted in the journal before it is sent and after it was acknowledged;
a voter that starts again sends first what was not acknowledged, as the page does.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from accord.feedback.connect import StoreUnavailable
from accord.feedback.queue import next_questions
from accord.feedback.store import open_store
from accord.feedback.votes import cast


def main(place: str, project: str, name: str, journal: Path) -> None:
    store = open_store(place, create=False)
    annotator = store.annotator(project, name)
    lines = journal.read_text().splitlines() if journal.exists() else []
    notes = [json.loads(line) for line in lines if line.endswith("}")]
    with journal.open("a") as file:
        if lines and not lines[-1].endswith("}"):
            file.write("\n")  # a note truncated by a kill

        def note(**values: object) -> None:
            file.write(json.dumps(values) + "\n")
            file.flush()

        def send(request: str, question: int, choice: str) -> None:
            for _ in range(20):
                try:
                    vote = cast(store, annotator, question, choice, request=request, seconds=1.0)  # type: ignore[arg-type]
                    break
                except StoreUnavailable as error:
                    print(error, file=sys.stderr)
            note(saved=request, vote=vote.id)

        saved = {n["saved"] for n in notes if "saved" in n}
        for n in notes:
            if "sent" in n and n["sent"] not in saved:
                send(n["sent"], n["question"], n["choice"])
        while some := next_questions(store, annotator, 1):
            request, choice = os.urandom(8).hex(), random.choice(["left", "right", "tie"])
            note(sent=request, question=some[0].id, choice=choice)
            send(request, some[0].id, choice)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
