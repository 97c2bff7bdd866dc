"""``accord models``: the registry on the command line.  SQLAlchemy and torch are imported where they are needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import UserError
from accord.io.atomic import write_text
from accord.io.finite_json import dumps, shown

if TYPE_CHECKING:
    from accord.registry.store import Store, Version

REFERENCE = "NAME (latest version of a run, see --out), NAME@3, NAME@ALIAS, or at least six digits of a digest"
WIDE = 96
"""Columns of a terminal from which a list of models has their digests."""
SIZES = ("B", "kB", "MB", "GB", "TB")
OVERVIEW = """\
The model registry: versions, aliases, tags and lineage of models.

  accord models list                        list all versions
  accord models lineage ppo_lm --svg FILE   show what a model was made from
  accord models promote ppo_lm@3            make version 3 ppo_lm@champion
  accord models export ppo_lm DIR           write a Hugging Face folder with a model card

It is stored in checkpoints/registry.sqlite, or in the file that the environment variable ACCORD_REGISTRY names."""


def add_commands(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Adds ``models`` with its own commands to argparse's ``commands``; each sets ``act``."""
    top = commands.add_parser(
        "models",
        help="model registry: list, lineage, alias, export, ...",
        description=OVERVIEW,
        formatter_class=formatter,
    )
    top.set_defaults(act=lambda options: top.print_help() or 0, debug=False)
    inner = top.add_subparsers(dest="models_command", metavar="COMMAND")

    def add(
        name: str, act: Callable[[argparse.Namespace], int], help: str, *references: str
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = inner.add_parser(name, help=help, description=help, formatter_class=formatter)
        for reference in references:
            parser.add_argument(reference, metavar=reference.upper(), help=REFERENCE)
        parser.add_argument(
            "--out",
            default="",
            help="run whose versions a name alone means (default: checkpoints/rlhf, else the only one)",
        )
        parser.add_argument("--debug", action="store_true", help="show tracebacks")
        parser.set_defaults(act=act)
        return parser

    p = add("list", show_list, "list versions with aliases, headline metric, size and age")
    p.add_argument("name", nargs="?", default="", metavar="NAME", help="only this name")
    p.add_argument("--kind", default="", help="only this kind: base, sft, reward, ppo ...")
    p.add_argument("--json", action="store_true", help="as JSON, for other programs")
    p = add("show", show_one, "show everything recorded about a version", "model")
    p.add_argument("--json", action="store_true", help="as JSON, for other programs")
    p = add("lineage", show_lineage, "show the lineage of a version, back to base model and data", "model")
    p.add_argument("--svg", metavar="FILE", help="also write it as an SVG picture")
    p.add_argument("--mermaid", action="store_true", help="print it as Mermaid text, which GitHub and GitLab render")
    p = add("alias", set_alias, "point an alias at a version", "model")
    p.add_argument("alias", metavar="ALIAS")
    p.add_argument("--remove", action="store_true", help="remove the alias")
    p = add("promote", promote, "make a version the champion; the former one becomes 'previous'", "model")
    p.add_argument("--to", default="champion", metavar="ALIAS", help="alias to set instead of champion")
    p = add("tag", set_tag, "set tags on a version", "model")
    p.add_argument("tags", nargs="+", metavar="TAG", help="WORD or KEY:VALUE")
    p.add_argument("--remove", action="store_true", help="remove the tags")
    p = add("diff", show_difference, "compare settings, data, metrics and weights of two versions", "a", "b")
    p.add_argument("--json", action="store_true", help="as JSON, for other programs")
    p = add("rm", remove, "remove a version from the registry", "model")
    p.add_argument("--force", action="store_true", help="even if it has an alias or other versions were made from it")
    p.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    p = add("export", export_model, "export a version", "model")
    p.add_argument("directory", metavar="DIR", help="new folder (or file, for gguf)")
    p.add_argument(
        "--format", choices=("hf", "safetensors", "gguf"), default="hf", help="hf: whole artifact with model card"
    )
    p.add_argument("--quantize", choices=("F16", "Q8_0", "Q4_0"), default="F16", help="gguf: type of matrix weights")
    p = add("import", import_model, "register an external artifact after verifying its digests, or a model of the hub")
    p.add_argument("directory", metavar="MODEL", help="artifact folder, a stage's folder, or a Hugging Face id")
    p.add_argument("--name", default="", help="name in the registry (default: its own)")


def _store(options: argparse.Namespace) -> Store:
    from accord.registry.store import open_store

    return open_store(None, *([options.out] if options.out else []))


def _print(*lines: str) -> None:
    from accord.runtime.console import console

    for line in lines:
        console.print(line, markup=False)


# ------------------------------------------------------------------ looking
def show_list(options: argparse.Namespace) -> int:
    from accord.registry.compare import sizes
    from accord.registry.headline import headline
    from accord.runtime.console import console
    from accord.runtime.tables import Column, make_table, right, show

    store = _store(options)
    found = store.list(options.name, options.kind)
    if options.json:
        keys = ("name", "version", "kind", "digest", "aliases", "tags", "outs", "created", "metrics")
        print(dumps([{key: getattr(v, key) for key in keys} | {"folder": str(v.folder)} for v in found], indent=2))
        return 0
    if not found:
        what = f" named {options.name!r}" * bool(options.name) + f" of kind {options.kind!r}" * bool(options.kind)
        _print(
            f"no model{what} in the registry ({store.path}); finished stages and 'accord models import DIR' add models"
        )
        return 0
    rows: list[tuple[str, ...]] = []
    for v in found:
        first = next(iter(headline(v.kind, v.metrics)), None)
        name, figure = (first.label, shown(first.value)) if first else ("damaged" if v.damage else "", "")
        size = in_bytes(sizes(v.folder))
        shown_outs = ", ".join(v.outs)
        rows.append(
            (v.label, ", ".join(v.aliases), v.kind, shown_outs, name, figure, size, age(v.created), v.digest[:8])
        )
    columns: list[Any] = [
        Column("model", overflow="fold"),
        Column("aliases", overflow="fold"),
        "kind",
        Column("run", overflow="fold"),
        Column("metric", overflow="fold"),
        right("value"),
        right("size"),
        right("age"),
        "digest",
    ]
    if console.is_terminal and console.width < WIDE:  # 'models show' has the digest
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    show(make_table(columns, rows))
    _print(*(v.damage for v in found if v.damage))
    return 0


def in_bytes(count: int) -> str:
    """1536 → 1.5 kB."""
    if count < 1000:
        return f"{count} B"
    power = min(4, (len(str(count)) - 1) // 3)
    size = count / 1000**power
    return f"{size:.0f} {SIZES[power]}" if size >= 10 else f"{size:.1f} {SIZES[power]}"


def age(created: str) -> str:
    """Time since an ISO timestamp, in the largest fitting unit; empty where it is unknown."""
    try:
        seconds = (datetime.now(timezone.utc) - datetime.fromisoformat(created)).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(seconds, 0):.0f} s"


def show_one(options: argparse.Namespace) -> int:
    from accord.registry.compare import sizes
    from accord.registry.exports import describe
    from accord.registry.lineage import flat
    from accord.runtime.tables import Column, make_table, show

    store = _store(options)
    v = store.find(options.model)
    if options.json:
        print(describe(store, v))
        return 0
    facts = {
        "model": v.label,
        "aliases": ", ".join(v.aliases),
        "tags": ", ".join(f"{key}:{value}" if value else key for key, value in v.tags.items()),
        "kind": v.kind,
        "run": ", ".join(v.outs),
        "digest": v.digest,
        "created": v.created,
        "code": ", ".join(f"{key} {value}" for key, value in v.manifest.get("versions", {}).items()) or v.code,
        "seed": "" if v.seed is None else str(v.seed),
        "folder": f"{v.folder} ({in_bytes(sizes(v.folder))})",
    }
    from accord.registry.family import short

    known = {other.digest: other.label for other in store.list()}
    family = store.lineage(v)
    parents = {
        key: f"{known.get(digest) or (family[digest].name if digest in family else '')} {short(digest, 16)}".strip()
        for key, digest in v.parents.items()
    }
    metrics = {key: shown(value, ".6g") for key, value in v.metrics.items()}
    settings = {key: str(value) for key, value in flat(v.settings)}
    for title, part in (("", facts), ("made from", parents), ("metrics", metrics), ("settings", settings)):
        known_values = [(key, value) for key, value in part.items() if value]
        if known_values:
            _print(f"\n{title}") if title else None
            show(make_table(["", Column(overflow="fold")], known_values))
    return 0


def show_lineage(options: argparse.Namespace) -> int:
    from accord.registry.lineage import mermaid, tree
    from accord.registry.picture import svg
    from accord.runtime.tables import show_tree

    store = _store(options)
    found = store.find(options.model)
    family = store.lineage(found)
    labels = {v.digest: v.label for v in store.list()} | {found.digest: found.label}
    if options.mermaid:
        print(mermaid(found.digest, family, labels))
    else:
        show_tree(tree(found.digest, family, labels))
    if options.svg:
        try:
            write_text(Path(options.svg), svg(found.digest, family, labels))
        except OSError as error:
            raise UserError(f"--svg {options.svg}: cannot be written ({error.strerror}).") from None
        print(f"wrote {options.svg}", file=sys.stderr if options.mermaid else sys.stdout)
    return 0


def show_difference(options: argparse.Namespace) -> int:
    from accord.registry.compare import as_json, difference, rows
    from accord.runtime.tables import Column, make_table, right, show

    store = _store(options)
    a, b = store.find(options.a), store.find(options.b)
    found = difference(store, a, b)
    if options.json:
        print(as_json(found))
        return 0
    for title, part in rows(found):
        columns = [Column(header, overflow="fold") for header in (title, a.label, b.label)]
        show(make_table(columns, [(key, *values) for key, values in part.items()]))
        _print("")
    if not found.settings and not found.data:
        _print("settings and data are equal")
    if a.digest == b.digest:
        _print("the contents are identical")
        return 0
    distances = [(key, f"{value:.3g}") for key, value in found.weights.items()]
    show(make_table(["weights", right("relative distance")], distances))
    if found.unlike:
        some = ", ".join(found.unlike[:3]) + (f" and {len(found.unlike) - 3} more" if len(found.unlike) > 3 else "")
        _print(f"not comparable (missing in one, or of different shape): {some}")
    return 0


# ------------------------------------------------------------------ changing
def _alias_line(found: Version, former: Version | None, alias: str) -> str:
    return f"{found.name}@{alias} is version {found.version}" + (f" (was {former.version})" if former else "")


def set_alias(options: argparse.Namespace) -> int:
    store = _store(options)
    if options.remove:
        store.unalias(options.model.partition("@")[0], options.alias)
        _print(f"{options.model.partition('@')[0]}@{options.alias} was removed")
        return 0
    found, former = store.alias(options.model, options.alias)
    _print(_alias_line(found, former, options.alias))
    return 0


def promote(options: argparse.Namespace) -> int:
    found, former = _store(options).promote(options.model, options.to)
    _print(_alias_line(found, former, options.to))
    if former:
        _print(
            f"to undo: accord models promote {former.name}@previous"
            + f" --to {options.to}" * (options.to != "champion")
        )
    return 0


def set_tag(options: argparse.Namespace) -> int:
    store = _store(options)
    for text in options.tags:
        key, _, value = text.partition(":")
        found = store.tag(options.model, key, None if options.remove else value)
    _print(f"{found.label}: " + (", ".join(f"{k}:{v}" if v else k for k, v in found.tags.items()) or "no tags"))
    return 0


def remove(options: argparse.Namespace) -> int:
    from accord.registry.compare import sizes

    store = _store(options)
    found = store.find(options.model, damaged=True)
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError(f"{found.label}: removing needs confirmation, and there is no terminal; add --yes.")
        answer = input(
            f"remove {found.label} ({found.kind}, {in_bytes(sizes(found.folder))}) from the registry? [y/N] "
        )
        if answer.strip().lower() not in ("y", "yes"):
            _print("nothing was removed")
            return 0
    store.remove(found.label, options.force)
    _print(f"removed {found.label}; its stage's own folder is untouched")
    return 0


def export_model(options: argparse.Namespace) -> int:
    from accord.registry.exports import export

    path, notes = export(_store(options), options.model, Path(options.directory), options.format, options.quantize)
    _print(f"wrote {path}", *(f"note: {note}" for note in notes))
    return 0


def import_model(options: argparse.Namespace) -> int:
    from accord.models.hub import is_hub_model
    from accord.registry.exports import import_folder, import_from_hub

    if is_hub_model(options.directory):
        found = import_from_hub(_store(options), options.directory, options.name, _print)
    else:
        found = import_folder(_store(options), Path(options.directory), options.name)
    _print(f"{found.label}: {found.kind}, digest {found.digest[:8]}, all digests verified")
    return 0
