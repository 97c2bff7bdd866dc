"""What comes with accord, and what to type for what does not: in a checkout and where it is installed from a wheel alike.

One rule for files: a relative path that begins with ``configs/`` and is not in the current folder is the file of that name
that comes with accord.  In a checkout that is its ``configs/``; a wheel has them in ``accord/configs``.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

CONFIGS = "configs"
_PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The checkout that accord is imported from; None where it is installed from a wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / CONFIGS).is_dir() else None


def shipped_configs() -> Path:
    """The folder of the configs that come with accord."""
    return (checkout() or _PACKAGE) / CONFIGS


def located(path: str | Path) -> Path:
    """The path itself, or the file that comes with accord where a path of ``configs/`` is not here."""
    given = Path(path)
    parts = Path(os.path.normpath(given)).parts  # configs/recipes/../rlhf_sft.yaml, as a recipe names it
    if parts[:1] != (CONFIGS,) or given.exists():
        return given
    there = shipped_configs().joinpath(*parts[1:])
    return there if there.exists() else given


def install_command(extra: str) -> str:
    """``pip install -e '.[ray]'`` in a checkout; elsewhere the extra's packages, as in ``pip install 'ray>=2.60'``.

    accord is in no package index, so that ``accord[ray]`` by its name could be somebody else's package.
    """
    if root := checkout():
        place = "." if Path.cwd() == root else root
        return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"
    try:
        declared = requires("accord") or []
    except PackageNotFoundError:  # its folder was copied without its metadata
        declared = []
    packages = dict.fromkeys(_packages(extra, declared))
    return f"pip install {' '.join(map(shlex.quote, packages))}"


def _packages(extra: str, declared: list[str]) -> Iterator[str]:
    """The requirements of an extra, and of the extras that it includes."""
    for line in declared:
        requirement, _, marker = line.partition(";")
        if not re.search(rf"extra == ['\"]{extra}['\"]", marker):
            continue
        if included := re.match(r"accord\[(.+?)\]", requirement):
            for name in included[1].split(","):
                yield from _packages(name.strip(), declared)
        else:
            yield requirement.strip()
