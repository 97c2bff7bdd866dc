"""One rank of the pair that all tests of ranks share: runs functions by name, as ``conftest.py`` asks on stdin."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from typing import TextIO

from accord.distributed import mesh


def load(path: str, name: str) -> object:
    spec = importlib.util.spec_from_file_location("cases_" + str(abs(hash(path))), path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.get(spec.name) or importlib.util.module_from_spec(spec)
    if spec.name not in sys.modules:
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return getattr(module, name)


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
            answer = {"result": load(job["path"], job["function"])(**job["arguments"])}  # type: ignore[operator]
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        mesh.at("the next function")


if __name__ == "__main__":
    main()
