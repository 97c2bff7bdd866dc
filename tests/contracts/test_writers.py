"""Only ``accord/io/atomic.py`` writes files: nothing else in the package opens one for writing, renames or links."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).parents[2]
ALLOWED = {
    ("accord/runtime/output.py", "os.open"): "the null device replaces an output that cannot be written",
    (
        "accord/pipeline/records.py",
        "os.open",
    ): "the journal grows by one write at its end, which several processes share",
    ("accord/pipeline/worker.py", "open"): "the last words of a process are added to its log",
    ("accord/pipeline/remote.py", "open"): "logs grow here as they do on the node",
    ("accord/pipeline/ranks.py", "open"): "the last words of ranks are added to the stage's log",
    ("accord/runtime/run.py", "open"): "metrics.jsonl grows by a line",
    ("accord/distributed/ray/ledger.py", "open"): "ledger.jsonl grows by a line",
    ("accord/stage_kinds/judges/openai.py", "open"): "answers.jsonl grows by a line, and is written whole at the end",
    (
        "accord/runtime/progress_file.py",
        "os.open",
    ): "progress.json is overwritten in one write of one length, twice a second",
    ("accord/runtime/peak_memory.py", "write_text"): "a switch of the kernel in /proc, no file",
    ("accord/registry/artifact_files.py", "os.link"): "artifacts share their bytes with the stage's folder",
}
"""(file, call): why it is right there."""
OF_OS = {"replace", "rename", "renames", "fsync", "link", "symlink", "truncate"}
OF_PATHS = {"write_text", "write_bytes", "rename", "touch", "symlink_to", "hardlink_to"}
WRITING_FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND"}


def writing_call(call: ast.Call) -> str:
    """What the call is named where it writes or renames; else empty."""
    function = call.func
    if isinstance(function, ast.Name):
        name, owner = function.id, ""
    elif isinstance(function, ast.Attribute):
        name, owner = function.attr, function.value.id if isinstance(function.value, ast.Name) else "?"
    else:
        return ""
    if owner == "os":
        flags = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
        return f"os.{name}" if name in OF_OS or (name == "open" and flags & WRITING_FLAGS) else ""
    if name == "open":
        words = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = [w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, str)]
        return "open" if any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes) else ""
    plain_rename = name == "replace" and owner and len(call.args) == 1 and not call.keywords  # of a Path, not of a str
    return name if (owner and name in OF_PATHS) or plain_rename else ""


def writing_calls(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (found := writing_call(node)):
            yield found


def test_every_way_to_write_is_seen() -> None:
    ways = {
        "os.replace(a, b)": ["os.replace"],
        "os.fsync(1)": ["os.fsync"],
        "os.open(a, os.O_WRONLY | os.O_CREAT)": ["os.open"],
        "os.open(a, os.O_RDONLY)": [],
        "a.replace(b)": ["replace"],
        "(a / 'x').rename(b)": ["rename"],
        "'text'.replace('a', 'b')": [],
        "replace(data, x=1)": [],
        "(a / 'x').write_text('y')": ["write_text"],
        "write_text(a, 'y')": [],
        "open(a, 'w')": ["open"],
        "open('w.txt')": [],
        "a.open(mode='ab')": ["open"],
        "a.open('r+b')": ["open"],
        "a.open('rb')": [],
        "a.open(encoding='utf-8')": [],
    }
    assert {source: list(writing_calls(source)) for source in ways} == ways


def test_only_one_file_writes() -> None:
    found = set()
    for path in sorted((REPO / "accord").rglob("*.py")):
        name = path.relative_to(REPO).as_posix()
        if name != "accord/io/atomic.py":
            found |= {(name, call) for call in writing_calls(path.read_text(encoding="utf-8"))}
    assert found == set(ALLOWED), "write with accord.io.atomic, or say in ALLOWED why not"
