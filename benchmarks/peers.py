"""A separate environment for a library, created once under ``.bench/<name>`` of the checkout; accord's own is not changed.

python(name, packages)         the interpreter of that environment
python benchmarks/peers.py     lists the environments
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".bench"
TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TRL_PPO = ["trl==1.12.0"]
"""The last TRL that has PPO (``trl.experimental.ppo``)."""


def python(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment with torch 2.13.0 and ``packages`` (pip's requirements).

    Created on the first call (minutes) and again when ``packages`` change; all other packages have the versions of
    ``constraints.txt``.  Raises SystemExit with pip's message if a package cannot be installed.
    """
    place = PLACE / name
    interpreter, made = place / "bin" / "python", place / "made.txt"
    asked = "\n".join([sys.version.split()[0], TORCH, *packages])
    if made.is_file() and made.read_text() == asked:
        return interpreter
    print(f"making {place.relative_to(ROOT)} with {TORCH}, {', '.join(packages)} (some minutes, once)", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    PLACE.mkdir(exist_ok=True)
    (PLACE / ".gitignore").write_text("*\n")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    constraints = place / "constraints.txt"
    constraints.write_text(_without(packages))
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints)]
    cpu = f"{TORCH}+cpu"  # has no CUDA packages; where there is none (macOS), the plain build is installed
    for attempt in ([cpu], ["--extra-index-url", CPU_INDEX, cpu], [TORCH]):
        if subprocess.run([*pip, *attempt], capture_output=True, check=False).returncode == 0:
            break
    done = subprocess.run([*pip, TORCH, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: pip could not install {', '.join(packages)}:\n{done.stderr[-2000:]}")
    made.write_text(asked)
    return interpreter


def _without(packages: Sequence[str]) -> str:
    """``constraints.txt`` without the packages that are requested by name."""
    named = {_plain(p) for p in packages}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#") or _plain(line) not in named) + "\n"


def _plain(requirement: str) -> str:
    """The package's name as the registry compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]).lower()


if __name__ == "__main__":
    for stamp in sorted(PLACE.glob("*/made.txt")):
        print(f"{stamp.parent.name}: {', '.join(stamp.read_text().splitlines())}")
