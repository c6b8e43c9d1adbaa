"""The workflow under `--use-conda`: a clone in a path with spaces, and environments made from environment.yml alone.

    make conda          (pytest tests/conda/check_conda.py)

`conda` is the stand-in beside this file: Snakemake's side is walked, and conda's own solver and channels are not. It
takes some minutes: by its name it is none of the tests that `make test` runs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from checkout import content

from benchmarks.steps import CODE

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent
RECORDER = '''"""Written by a test: at its end, every Python of this environment says what it has run."""
import atexit, json, sys


def say():
    files = [getattr(sys.modules.get(name), "__file__", None) for name in ("__main__", "know")]
    with open({place!r}, "a", encoding="utf-8") as out:
        out.write(json.dumps([sys.prefix, sys.orig_argv[1:], *files]) + "\\n")


atexit.register(say)
'''
REACHED = """
import importlib.metadata, json, sys
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as plain

reached, waiting = set(), [Requirement(line) for line in sys.argv[1:]]
while waiting:
    one = waiting.pop()
    for extra in {"", *one.extras}:
        if (plain(one.name), extra) not in reached:
            reached.add((plain(one.name), extra))
            lines = map(Requirement, importlib.metadata.requires(one.name) or ())
            waiting += [line for line in lines if line.marker is None or line.marker.evaluate({"extra": extra})]
installed = {plain(each.name): each.version for each in importlib.metadata.distributions()}
print(json.dumps([sorted({name for name, _ in reached}), installed]))
"""
"""What requirements reach here, whatever their extras, and what is installed here."""


class Conda:
    """The stand-in, installed as conda is: a folder whose `bin` is on PATH."""

    def __init__(self, base: Path):
        self.base = base
        (base / "bin").mkdir(parents=True)
        for name in ("conda", "activate"):
            shutil.copy(HERE / name, base / "bin")

    def shell(self, line: str, folder: Path, python: Path | None = None) -> subprocess.CompletedProcess:
        """A line of bash without this environment; `python` is a folder of programs that comes first."""
        own = Path(sys.executable).parent
        rest = [place for place in os.environ["PATH"].split(os.pathsep) if Path(place) != own]
        path = os.pathsep.join([str(self.base / "bin"), *([str(python)] if python else []), *rest])
        left_out = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "KNOW_FORCE")
        env = {key: value for key, value in os.environ.items() if key not in left_out and "CONDA" not in key}
        options = {"cwd": folder, "env": {**env, "PATH": path}, "capture_output": True, "text": True}
        return subprocess.run(["bash", "-c", line], check=False, **options)

    def said(self, line: str, folder: Path, python: Path | None = None) -> str:
        done = self.shell(line, folder, python)
        assert done.returncode == 0, f"{line}\n{done.stdout[-10_000:]}\n{done.stderr[-20_000:]}"
        return done.stdout + done.stderr

    def snakemake(self, folder: Path, *options: str) -> str:
        """Snakemake of the environment `know`, activated as people do it; what it says."""
        line = f"source {self.base}/bin/activate {self.base}/envs/know; snakemake --cores all {' '.join(options)}"
        return self.said(f"{line} --config suite=tiny", folder)


def clone(folder: Path) -> Path:
    """A clone of this repository as its files are now, with a suite of seconds."""
    git = ["git", "-C", str(REPOSITORY)]
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)
    changed = subprocess.run(
        [*git, "ls-files", "-z", "--modified", "--others", "--exclude-standard"], capture_output=True, check=True
    )
    for name in filter(None, changed.stdout.decode().split("\0")):
        (folder / name).unlink(missing_ok=True)
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    shutil.copy(REPOSITORY / "tests/suites/tiny.yaml", folder / "benchmarks/suites")
    return folder


def of_pip() -> list[str]:
    """What environment.yml asks of pip."""
    return yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))["dependencies"][-1]["pip"]


def programs() -> set[str]:
    """What the rules run with `python -m`."""
    text = (REPOSITORY / "workflow/publish.smk").read_text(encoding="utf-8")
    return {f"benchmarks {rule}" for rule in CODE} | set(re.findall(r'"python -m (paper_figures|benchmarks \w+)', text))


class Walk:
    """Two clones in which the suite has run: `plain` without `--use-conda`, `walked` with it."""

    def __init__(self, folder: Path):
        self.conda = conda = Conda(folder / "base")
        self.outer, self.records = conda.base / "envs/know", folder / "records.jsonl"
        self.plain, self.walked = clone(folder / "plain" / "a clone"), clone(folder / "with conda" / "a clone")
        conda.said("conda env create -f environment.yml", self.walked, python=Path(sys.executable).parent)
        said = conda.snakemake(self.walked, "--use-conda", "--conda-create-envs-only")
        (self.prefix,) = [path for path in (self.walked / ".snakemake/conda").iterdir() if path.is_dir()]
        self.reached = {place: self.packages(place) for place in (self.outer, self.prefix)}
        for place in self.reached:
            self.record(place)
        with ThreadPoolExecutor() as both:
            plain = both.submit(conda.snakemake, self.plain)
            self.said = said + conda.snakemake(self.walked, "--use-conda")
            plain.result()

    def record(self, prefix: Path) -> None:
        """Let every Python of an environment say at its end what it has run."""
        (packages,) = prefix.glob("lib/python*/site-packages")
        (packages / "recorder_of_the_test.py").write_text(RECORDER.format(place=str(self.records)), encoding="utf-8")
        (packages / "recorder_of_the_test.pth").write_text("import recorder_of_the_test\n", encoding="utf-8")

    def packages(self, prefix: Path) -> tuple[list[str], dict[str, str]]:
        """What the requirements of environment.yml reach in an environment, and what is installed there."""
        line = [prefix / "bin/python", "-I", "-c", REACHED, *of_pip()]
        return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)

    def ran(self, clone: Path) -> set[tuple[str, str]]:
        """Programs that ran with the code of a clone, and the environments in which they ran."""
        found = set()
        for line in self.records.read_text(encoding="utf-8").splitlines():
            prefix, arguments, main, know = json.loads(line)
            if main and Path(main).parent.parent == clone:
                assert know in (None, str(clone / "know/__init__.py"))
                name = Path(main).parent.name
                found.add((name if name == "paper_figures" else f"{name} {arguments[2]}", prefix))
        return found


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Walk:
    if not shutil.which("git") or not (REPOSITORY / ".git").exists():
        pytest.skip("needs git and a clone")
    return Walk(tmp_path_factory.mktemp("conda"))


def test_the_environments_hold_what_environment_yml_asks_of_pip_and_nothing_else(walk):
    for reached, installed in walk.reached.values():
        assert sorted(installed) == reached
        assert "torch" in installed
        assert "know-prediction" not in installed
    (_, outer), (_, inner) = walk.reached.values()
    assert outer == inner  # else the bytes of the two runs need not be the same


def test_every_job_ran_in_the_environment_that_snakemake_made_and_with_the_code_of_the_clone(walk):
    assert " " in str(walk.walked)
    assert {"benchmarks data", "benchmarks transfer", "benchmarks publish", "paper_figures"} < programs()
    assert walk.ran(walk.walked) == {(name, str(walk.prefix)) for name in programs()}
    assert walk.ran(walk.plain) == {(name, str(walk.outer)) for name in programs()}
    assert "channel_priority" not in walk.said


def test_the_bytes_are_those_of_a_run_without_conda(walk):
    for name in ("results", "work/tiny"):
        assert content(walk.walked / name) == content(walk.plain / name)
    assert (walk.walked / "results/tiny/figures/accuracy_by_arm.png").is_file()


def test_nothing_is_left_to_do_and_without_conda_everything_is_as_the_manual_says(walk):
    assert "Nothing to be done" in walk.conda.snakemake(walk.walked, "--dry-run", "--use-conda")
    assert "Software environment definition has changed" in walk.conda.snakemake(walk.walked, "--dry-run")
