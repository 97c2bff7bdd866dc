from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from accord.io import installation
from accord.io.installation import install_command, located

REPO = Path(__file__).parents[2]
METADATA = """\
Metadata-Version: 2.4
Name: accord
Version: 0.1.0
Requires-Dist: numpy>=1.26
Requires-Dist: gguf>=0.10; extra == 'gguf'
Requires-Dist: ray>=2.60; extra == "ray"
Requires-Dist: accord[gguf,ray]; extra == 'both'
Requires-Dist: pillow>=10; extra == 'both'
"""


@pytest.fixture(params=["checkout", "wheel"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and accord imported from a checkout, or from where a wheel puts it."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    if request.param == "checkout":
        return REPO / "configs"
    site = tmp_path / "site"
    shutil.copytree(REPO / "configs", site / "accord" / "configs")
    (site / "accord-0.1.0.dist-info").mkdir()
    (site / "accord-0.1.0.dist-info" / "METADATA").write_text(METADATA)
    monkeypatch.setattr(installation, "_PACKAGE", site / "accord")
    monkeypatch.syspath_prepend(str(site))
    return site / "accord" / "configs"


def test_a_config_that_is_not_here_is_the_one_that_comes_with_accord(place: Path) -> None:
    for name in ("pipeline.yaml", "recipes/smollm2.yaml", "recipes/smollm2_prompts.jsonl", "recipes/../rlhf_sft.yaml"):
        assert located(f"configs/{name}").resolve() == (place / name).resolve()
        assert located(Path("configs") / name).is_file()


def test_a_file_that_is_here_is_read_and_not_the_one_that_comes_with_accord(place: Path) -> None:
    Path("configs").mkdir()
    Path("configs/pipeline.yaml").write_text("stages: {}\n")
    assert located("configs/pipeline.yaml") == Path("configs/pipeline.yaml")
    assert located("configs/rlhf_sft.yaml") == place / "rlhf_sft.yaml"  # by the same rule, although the folder is here


@pytest.mark.parametrize(
    "path",
    [
        "pipeline.yaml",
        "other/configs/pipeline.yaml",
        "/configs/pipeline.yaml",
        "configs/../../pipeline.yaml",
        "configs/no.yaml",
        "",
    ],
)
def test_any_other_path_stays_as_it_is(place: Path, path: str) -> None:
    assert located(path) == Path(path)


def test_in_a_checkout_the_extra_is_installed_from_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPO)
    assert install_command("ray") == "pip install -e '.[ray]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("ray") == f"pip install -e '{REPO}[ray]'"


@pytest.mark.parametrize("place", ["wheel"], indirect=True)
def test_elsewhere_the_packages_of_the_extra_are_named_and_never_accord(place: Path) -> None:
    assert install_command("ray") == "pip install 'ray>=2.60'"
    assert install_command("both") == "pip install 'gguf>=0.10' 'ray>=2.60' 'pillow>=10'"


def test_every_extra_that_a_message_names_is_declared() -> None:
    """``install_command`` of an unknown extra would print a command that installs nothing."""
    declared = re.findall(
        r"^(\w+) = \[", (REPO / "pyproject.toml").read_text().partition("optional-dependencies]")[2], re.M
    )
    used = {
        name
        for path in (REPO / "accord").rglob("*.py")
        for name in re.findall(r"install_command\(['\"](\w+)", path.read_text())
    }
    assert len(used) > 6
    assert used <= {*declared}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel of this checkout is unpacked to."""
    pytest.importorskip("hatchling")
    made = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made)]
    subprocess.run(build, cwd=REPO, check=True, capture_output=True)
    [found] = made.glob("*.whl")
    shutil.unpack_archive(found, made / "site", "zip")
    return made / "site"


def test_a_wheel_has_the_configs_byte_for_byte(wheel: Path) -> None:
    ours = {p.relative_to(REPO / "configs") for p in (REPO / "configs").rglob("*") if p.is_file()}
    theirs = {
        p.relative_to(wheel / "accord" / "configs") for p in (wheel / "accord" / "configs").rglob("*") if p.is_file()
    }
    assert ours == theirs
    assert all((wheel / "accord" / "configs" / p).read_bytes() == (REPO / "configs" / p).read_bytes() for p in ours)
