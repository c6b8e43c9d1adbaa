"""The pages that tell people what to type: they are run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "adding_a_predictor.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of this repository with what is under version control or could be, and the finished smoke run if any."""
    if not shutil.which("git") or not (REPOSITORY / ".git").exists():
        pytest.skip("needs git and a clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tmp_path / name)
    if (REPOSITORY / "work" / "smoke").is_dir() and (REPOSITORY / ".snakemake" / "metadata").is_dir():
        shutil.copytree(REPOSITORY / "work" / "smoke", tmp_path / "work" / "smoke")
        shutil.copytree(REPOSITORY / ".snakemake" / "metadata", tmp_path / ".snakemake" / "metadata")
    return tmp_path


def test_the_page_on_adding_a_predictor_does_what_it_says(checkout):
    (file,) = blocks(PAGE, "python")
    (commands,) = blocks(PAGE, "sh")
    (place,) = re.findall(r"Save it as `(know/predictors/\w+\.py)`", PAGE.read_text(encoding="utf-8"))
    assert not (checkout / place).exists()
    (checkout / place).write_text(file, encoding="utf-8")
    before = pd.read_csv(checkout / "results" / "smoke" / "runs.csv")
    # the copy's own modules, and the programs of this environment
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = {**os.environ, "PYTHONPATH": str(checkout), "PATH": path}
    lines = commands.strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        done = subprocess.run(line, shell=True, cwd=checkout, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    after = pd.read_csv(checkout / "results" / "smoke" / "runs.csv")
    table = (checkout / "results" / "smoke" / "README.md").read_text(encoding="utf-8")
    for arm in ("secant_x2", "secant_x8"):
        assert f"\n| {arm} | " in table
        assert set(after.loc[after["arm"] == arm, "cell"]) == set(before["cell"])
    others = after[~after["arm"].isin(["secant_x2", "secant_x8"])]
    assert set(others["arm"]) == set(before["arm"])
