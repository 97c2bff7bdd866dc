"""The command ``accord data``: its options, and the exit code."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from accord.data_report.hazards import HAZARDS
from accord.errors import UserError

MAX_LENGTH = 256
"""As ``model.max_length`` of the stages."""
OVERVIEW = """\
Shows what a trainer would make of a file of rows, before anything is trained: what its rows are, the first ones as
exact tokens with what is learned, lengths, what is cut, and how many rows have which hazard.

  accord data rows.jsonl --model my/folder                 look at a file
  accord data rows.jsonl --model sft --heldout held.jsonl  also: prompts on both sides
  accord data pairs.parquet --model org/name --rows 10     more rows as tokens
  accord data rows.jsonl --model my/folder --json | jq .hazards

The exit code is 1 where a hazard is in more rows than accepted, 2 for a file or model that cannot be read.  By default
no row may have a hazard that spoils training, and any number the others; --max-HAZARD sets another limit for one:
a number of rows (3), a share (0.5%) or none.

"""


def add_command(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Adds ``data`` to argparse's ``commands``."""
    top = commands.add_parser(
        "data",
        help="check a file of rows: tokens, labels, lengths, hazards",
        description=OVERVIEW + "hazards:\n" + "\n".join(_hazard_lines()),
        formatter_class=formatter,
        allow_abbrev=False,  # a new hazard would change what an abbreviation means
        usage="accord data FILE --model MODEL [--kind KIND] [--heldout FILE] [--json] [--max-HAZARD N] ...",
    )
    top.add_argument("file", metavar="FILE", help="JSON Lines or another file of rows that the stages read")
    top.add_argument(
        "--model",
        required=True,
        help="whose tokenizer and chat template: a folder, a stage's folder, a .gguf file, a name in the registry, a Hugging"
        " Face id, or transformer (the small models); no weights are read",
    )
    top.add_argument(
        "--kind", choices=("sft", "preferences", "prompts"), help="what the rows are for (default: as they look)"
    )
    top.add_argument("--heldout", default="", metavar="FILE", help="held-out rows, whose prompts should not be in FILE")
    top.add_argument("--rows", type=int, default=3, metavar="N", help="rows that are shown as tokens (default 3)")
    top.add_argument(
        "--max-length",
        type=int,
        default=MAX_LENGTH,
        metavar="N",
        help=f"tokens above which training cuts, the stages' model.max_length (default {MAX_LENGTH})",
    )
    top.add_argument(
        "--processes", type=int, default=0, metavar="N", help="processes (default: one per core, at most 4)"
    )
    top.add_argument("--json", action="store_true", help="as JSON, for other programs")
    for name in HAZARDS:
        top.add_argument(f"--max-{name}", dest=f"limit_{name}", default=None, metavar="N", help=argparse.SUPPRESS)
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    top.set_defaults(act=show_data)


def _hazard_lines() -> list[str]:
    width = max(map(len, HAZARDS))
    return [f"  {name:<{width}}  {'*' if h.spoils else ' '} {h.means}" for name, h in HAZARDS.items()] + [
        "",
        "  * no row may have it unless --max-HAZARD says otherwise",
    ]


def show_data(options: argparse.Namespace) -> int:
    """Prints the report; 1 where a limit is exceeded."""
    from accord.data_report.as_text import show
    from accord.data_report.inspect_file import Request, inspect_file
    from accord.data_report.report import as_json
    from accord.data_report.verdict import default_limits, parse_limit

    for option, least in (("rows", 0), ("max_length", 2), ("processes", 0)):
        if getattr(options, option) < least:
            raise UserError(f"--{option.replace('_', '-')}: {getattr(options, option)}, expected at least {least}.")
    limits = default_limits()
    for name in HAZARDS:
        if (given := getattr(options, f"limit_{name}")) is not None:
            limits[name] = parse_limit(f"--max-{name}", given)
    processes = options.processes or min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    request = Request(
        options.file, options.model, options.kind or None, options.max_length, options.heldout, options.rows, processes
    )
    report = inspect_file(request, limits)
    if options.json:
        print(json.dumps(as_json(report), indent=2))
    else:
        show(report)
    return 1 if report.exceeded else 0
