"""The command ``accord init``: writes a first pipeline with ten rows of data, a reward function and a README."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from accord.errors import UserError

FILES = Path(__file__).parent / "files"
OVERVIEW = """\
Writes a starter into FOLDER: pipeline.yaml with a comment on every choice, ten rows of data, a reward function, and a
README of five commands, which run in about a minute.  No file is overwritten.

The configs and recipes that come with accord need no copy: every command finds them by their name, as in
'accord run configs/pipeline.yaml'."""


def add_command(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Adds ``init`` to argparse's ``commands``."""
    top = commands.add_parser(
        "init",
        help="write a starter: config, data, reward function, README",
        description=OVERVIEW,
        formatter_class=formatter,
    )
    top.add_argument("folder", metavar="FOLDER", nargs="?", default=".", help="where to (default: the current folder)")
    top.add_argument("--list", action="store_true", help="list the configs and recipes that come with accord instead")
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    top.set_defaults(act=init)


def init(options: argparse.Namespace) -> int:
    """Writes the starter, and prints what to type next.  Raises UserError where one of the files exists already."""
    from accord.io.atomic import write_text

    if options.list:
        from accord.starter.shipped import show_shipped

        show_shipped()
        return 0
    folder = Path(options.folder)
    place = folder.resolve()  # not/there/.. is a folder that exists, also before not/there does
    try:
        if found := [str(folder / name) for name in _CONTENTS if os.path.lexists(place / name)]:
            raise UserError(
                f"init: {', '.join(found)} would be overwritten; name another folder, as in accord init my_run."
            )
        place.mkdir(parents=True, exist_ok=True)
        for name in _CONTENTS:
            write_text(place / name, (FILES / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"init: {folder}: cannot be written ({error.strerror}); name another folder.") from None
    for name, text in _CONTENTS.items():
        print(f"  {folder / name}: {text}")
    change = "" if folder == Path(".") else f"cd {shlex.quote(str(folder))} && "
    print(f"next: {change}accord run pipeline.yaml, or the five commands of {folder / 'README.md'}")
    return 0


_CONTENTS = {
    "README.md": "five commands",
    "pipeline.yaml": "what runs, with every choice explained",
    "rows.jsonl": "ten rows of data",
    "rewards.py": "a reward function",
}
