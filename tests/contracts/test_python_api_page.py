"""docs/python_api.md: its blocks run, one after another, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
PAGE = REPO / "docs" / "python_api.md"


def test_the_blocks_of_the_page_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "ACCORD_REGISTRY": str(tmp_path / "r.sqlite")}
    command = [sys.executable, "page.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "did you mean 'training.learning_rate'?" in ended.stdout
    assert "['demo', 'base', 'sft_rate-0.0001', 'sft_rate-0.001']" in ended.stdout
