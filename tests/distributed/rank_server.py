"""One rank of the pair that all tests of ranks share: runs functions by name, as ``conftest.py`` asks on stdin."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import TextIO

from accord.distributed import mesh


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what functions print must not mix with the answers
    os.dup2(2, 1)
    mesh.join()
    with mesh.working(120):
        serve(answers)
    mesh.leave()


def serve(answers: TextIO) -> None:
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"result": getattr(importlib.import_module(job["module"]), job["function"])(**job["arguments"])}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        mesh.at("the next function")


if __name__ == "__main__":
    main()
