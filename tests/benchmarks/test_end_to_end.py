"""The workflow as a user runs it, on a suite of seconds: what it makes, what it makes again, and what a kill leaves."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from checkout import content, copy, fine_tunes, processes_in
from planted_results import run

from benchmarks.arms import arms_of
from benchmarks.records import PilotRecord, RunRecord, read_records
from benchmarks.references import REFERENCES
from benchmarks.report.folders import GROUPS
from benchmarks.report.publish import check
from benchmarks.suite import load_suite

REPOSITORY = Path(__file__).parents[2]
CELL = "overflow.digits_0-4.digits_5-9.mlp.100"
NOTHING = "Nothing to be done"
MADE_BY = ("forget", "metaset", "metatrain", "transfer", "landscape", "inspect", "cost", "publish", "figures")


def command(*arguments: str) -> list[str]:
    program = Path(sys.executable).with_name("snakemake")
    if not program.is_file():
        pytest.skip("Snakemake is not installed beside this Python")
    return [str(program), "--cores", "2", "--config", "suite=tiny", "--", *arguments]


def snakemake(folder: Path, *arguments: str) -> str:
    """Run the workflow to its end; what it says."""
    options = [argument for argument in arguments if argument.startswith("-")]
    line = command(*(argument for argument in arguments if argument not in options))
    line[1:1] = options
    done = subprocess.run(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def wanted(folder: Path) -> set[str]:
    """The rules that a run would start now."""
    said = snakemake(folder, "-n")
    found = {rule for rule in MADE_BY if f"\nrule {rule}:" in said or f"\nlocalrule {rule}:" in said}
    assert bool(found) != (NOTHING in said), said
    return found


@contextlib.contextmanager
def kept(path: Path) -> Iterator[bytes]:
    """The content of a file, which may be changed meanwhile and is as it was afterwards."""
    before = path.read_bytes()
    try:
        yield before
    finally:
        path.write_bytes(before)


@contextlib.contextmanager
def replaced(path: Path, old: str, new: str) -> Iterator[None]:
    """The file with `new` for the first `old`, and as it was afterwards."""
    with kept(path) as before:
        assert old.encode() in before
        path.write_bytes(before.replace(old.encode(), new.encode(), 1))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A checkout in which the workflow has run once, and what it made is committed."""
    folder = copy(tmp_path_factory.mktemp("end_to_end") / "checkout")
    shutil.copy(REPOSITORY / "tests" / "suites" / "tiny.yaml", folder / "benchmarks" / "suites")
    snakemake(folder)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet"], ["add", "results"], ["commit", "--quiet", "--message", "Results"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    return folder


# what it makes


def test_the_tables_are_complete_and_valid(finished):
    results = finished / "results" / "tiny"
    runs = read_records([results / "runs.csv"], RunRecord)
    suite = load_suite(str(finished / "benchmarks" / "suites" / "tiny.yaml"))
    asked = arms_of(suite.arms, suite.cell(CELL))
    assert {arm.group for arm in asked} == set(GROUPS)
    assert REFERENCES.keys() - {"oracle_x4", "oracle_x8"} <= {arm.name for arm in asked}  # D0 is half of the source
    assert set(runs["arm"]) == {arm.name for arm in asked}
    assert not runs.duplicated(["cell", "trajectory", "arm", "policy", "fine_tune"]).any()
    assert len(runs) == runs["arm"].nunique() * 2 * 2  # two trajectories, two policies
    pilots = read_records([results / "pilots.csv"], PilotRecord)
    assert set(pilots["trajectory"]) == {"p0"}
    assert set(pilots["arm"]) == set(runs["arm"])
    snapshots = pd.read_csv(results / "trajectories.csv")
    assert len(snapshots) == 3 * 5
    assert (results / "known" / "5" / "README.md").is_file()
    steps = pd.read_csv(results / "steps.csv")
    assert set(steps["role"]) == {"fc", "bias", "all"}
    taken = steps.dropna(subset="shrink")
    assert taken[["shrink", "linear", "neither"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=2e-3)
    assert set(taken["predictor"]) >= {"known", "linear", "shrink", "meta_linear_theta0", "rre_global"}
    assert len(pd.read_csv(results / "movement.csv")) == 2 * 3 * 4  # trajectories, roles with `all`, differences
    plane = pd.read_csv(results / "landscape.csv")
    assert set(plane["kind"]) >= {"snapshot", "known", "oracle", "grid"}
    assert plane.loc[plane["label"] == "theta_0", ["x", "y"]].to_numpy().tolist() == [[0, 0]]


def test_the_metrics_are_the_means_of_the_records(finished):
    results = finished / "results" / "tiny"
    runs = read_records([results / "runs.csv"], RunRecord)
    metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    means = (100 * runs.groupby(["cell", "arm", "policy"])["accuracy"].mean()).to_dict()
    flat = {(c, a, r): value for c, arms in metrics.items() for a, found in arms.items() for r, value in found.items()}
    assert flat == pytest.approx(means, abs=1e-3)


def test_the_pages_fit_and_say_that_they_are_no_evidence(finished):
    assert len(check(finished / "results")) >= 2
    assert "**Not evidence.**" in (finished / "results" / "tiny" / "README.md").read_text(encoding="utf-8")


def test_every_picture_on_the_page_is_there(finished):
    results = finished / "results" / "tiny"
    pictures = {path.stem for path in (results / "figures").glob("*.png")}
    assert pictures == {path.stem for path in (results / "figures").glob("*.svg")}
    assert pictures == {path.stem for path in (finished / "paper_figures").glob("[!_]*.py")} - {"ablation"}
    page = (results / "README.md").read_text(encoding="utf-8")
    assert all(f"](figures/{name}.png)" in page for name in pictures)


def test_the_cost_of_every_job_is_kept_beside_the_results(finished):
    cost = pd.read_csv(finished / "results" / "tiny" / "cost.csv")
    assert {job.partition("/")[0] for job in cost["job"]} == {"data", *MADE_BY} - {"publish", "figures"}
    assert (cost["seconds"] > 0).all()


@pytest.mark.slow
def test_a_report_to_browse_is_made_by_one_command_with_every_figure(finished, tmp_path):
    line = [command()[0], "--report", str(tmp_path / "report.html"), "--config", "suite=tiny"]
    done = subprocess.run(line, cwd=finished, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    names = {path.name for path in (finished / "results" / "tiny" / "figures").iterdir()}
    assert {name for name in names if f"Adding {name} " in done.stdout} == names
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def test_no_work_is_left_half_done(finished):
    left = [path for path in finished.rglob("*") if path.name.endswith((".partial", ".tmp", ".old"))]
    assert [path for path in left if ".snakemake" not in path.parts] == []


def test_publishing_does_without_torch(finished):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from benchmarks.report.publish import publish\n"
        "from benchmarks.suite import load_suite\n"
        "publish(load_suite('tiny'), 'tiny', Path('work/tiny'), Path('results'))\n"
        "print('torch' in sys.modules)\n"
    )
    before = content(finished / "results")
    done = subprocess.run([sys.executable, "-c", code], cwd=finished, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert content(finished / "results") == before


# what it makes again


def test_a_second_run_has_nothing_to_do(finished):
    before = content(finished / "results")
    assert NOTHING in snakemake(finished)
    assert content(finished / "results") == before


def test_new_dates_and_words_of_the_code_make_nothing_again(finished):
    for path in (finished / "work").rglob("*"):
        os.utime(path)
    with (
        replaced(finished / "benchmarks" / "transfer.py", '"""', '"""Other words. '),
        replaced(finished / "benchmarks" / "data.py", "import hashlib\n", "# another remark\nimport hashlib\n"),
    ):
        assert wanted(finished) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "rules"),
    [
        (
            "benchmarks/transfer.py",
            '"rule": "point: highest',
            '"rule": "the point: highest',
            {"transfer", "publish", "figures"},
        ),
        ("benchmarks/suites/tiny.yaml", "updates: 40", "updates: 44", set(MADE_BY) - {"forget"}),
        pytest.param("paper_figures/accuracy_by_arm.py", "nbins=6", "nbins=7", {"figures"}, marks=pytest.mark.slow),
        pytest.param(
            "benchmarks/suites/tiny.yaml", "title:", "device: cuda\ntitle:", set(MADE_BY), marks=pytest.mark.slow
        ),
    ],
)
def test_a_change_makes_again_what_it_can_reach_and_no_more(finished, file, old, new, rules):
    with replaced(finished / file, old, new):
        assert wanted(finished) == rules


@pytest.mark.slow
def test_a_misspelt_suite_is_one_line(finished):
    line = [argument.replace("suite=tiny", "suite=tinny") for argument in command()]
    done = subprocess.run(line, cwd=finished, capture_output=True, text=True, check=False)
    said = [text for text in done.stderr.splitlines() if not text.startswith("Using workflow specific profile")]
    assert done.returncode != 0
    assert said == ["know: error: unknown suite 'tinny': did you mean 'tiny'?"]


def test_a_lost_table_comes_back_as_it_was(finished):
    results = finished / "results" / "tiny"
    before = content(finished / "results")
    for name in ("runs.csv", "README.md"):
        (results / name).unlink()
    snakemake(finished, "results/tiny/README.md")
    assert content(finished / "results") == before


@pytest.mark.slow
def test_what_is_there_is_published_with_what_is_missing_and_the_rest_comes_back_as_it_was(finished):
    def report(*options: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "benchmarks", "publish", "--suite", "tiny", *options]
        return subprocess.run(line, cwd=finished, capture_output=True, text=True, check=False)

    work, results = finished / "work" / "tiny", finished / "results" / "tiny"
    before = {folder: content(finished / folder) for folder in ("work", "results")}
    os.replace(work / "inspection", work / "elsewhere")
    try:
        assert report("--incomplete").returncode == 0
        assert pd.read_csv(results / "failed.csv")["job"].to_list() == ["inspect"]
        assert not (results / "steps.csv").exists()
        assert "**Incomplete.**" in (results / "README.md").read_text(encoding="utf-8")
        assert str(results / "README.md") in check(finished / "results")
        assert (results / "runs.csv").read_bytes() == before["results"]["tiny/runs.csv"]
        assert "publish" in wanted(finished)
        os.replace(work / "transfers" / CELL, work / "cell")
        refused = report("--incomplete")
        os.replace(work / "cell", work / "transfers" / CELL)
        assert (refused.returncode, "no cell of tiny is finished" in refused.stderr) == (2, True)
    finally:
        os.replace(work / "elsewhere", work / "inspection")
    assert report("--incomplete").returncode == 0  # nothing is missing
    assert {folder: content(finished / folder) for folder in ("work", "results")} == before


# verify


@pytest.fixture
def verify(finished, monkeypatch, capsys):
    """Function that runs `python -m benchmarks verify` on the finished run; exit code, output and error."""

    monkeypatch.chdir(finished)
    return lambda: (run("verify", "--suite", "tiny"), *capsys.readouterr())


def test_a_finished_run_is_verified(verify):
    code, output, error = verify()
    assert (code, error) == (0, "")
    assert output.splitlines()[0].startswith("files: ")
    assert output.splitlines()[-1] == "results: the records equal those of HEAD, byte for byte"


@pytest.mark.parametrize(
    "file",
    [
        "work/tiny/trajectories/digits_0-4.mlp/t8/overflow/s3.safetensors",
        "work/tiny/trajectories/digits_0-4.mlp/t8/overflow/p3.safetensors",
        "work/tiny/trajectories/digits_0-4.mlp/p0/overflow/oracle.safetensors",
        "work/tiny/metaset/0/00003.safetensors",
        "work/tiny/known/5/known.safetensors",
        f"work/tiny/transfers/{CELL}/choice.json",
        "results/tiny/metrics.json",
        "results/tiny/README.md",
    ],
)
def test_one_changed_byte_is_found(finished, verify, file):
    with kept(finished / file) as before:
        (finished / file).write_bytes(before[:-7] + bytes([before[-7] ^ 1]) + before[-6:])
        code, _, error = verify()
        assert code == 2
        assert error == f"know: error: {file} has changed since it was made; restore it or run the suite again\n"
        (finished / file).unlink()
        code, _, error = verify()
        assert (code, f"{file} is missing" in error) == (2, True)


# a part of it, again from nothing


@pytest.fixture
def recheck(finished, monkeypatch, capsys):
    """Function that makes two arms of the first trajectory again; exit code, output and error."""
    monkeypatch.chdir(finished)
    chosen = [each for arm in ("compute_matched", "known_x2") for each in ("--arm", arm)]
    return lambda *more: (run("recheck", "--suite", "tiny", *chosen, *more), *capsys.readouterr())


def test_fine_tunes_made_again_from_nothing_are_those_of_the_records(finished, recheck):
    code, output, _ = recheck()
    *lines, last = output.splitlines()
    assert code == 0
    assert all(line.endswith("; the same") for line in lines)
    assert {line.partition(",")[0] for line in lines} == {"compute_matched", "known_x2"}
    assert last == f"{len(lines)} of {len(lines)} fine-tunes are exactly the recorded ones"


def test_a_record_that_does_not_come_out_again_is_found(finished, recheck):
    runs = pd.read_csv(finished / "results/tiny/runs.csv", dtype=str, keep_default_na=False)
    wrong = (runs["arm"] == "known_x2") & (runs["trajectory"] == "t7") & (runs["policy"] == "tuned")
    assert wrong.any()
    runs.loc[wrong, "accuracy"] = "0.123"
    with kept(finished / "results/tiny/runs.csv"):
        runs.to_csv(finished / "results/tiny/runs.csv", index=False)
        code, output, error = recheck()
        elsewhere = finished / "results/tiny/provenance.json"
        with replaced(elsewhere, '"python": "', '"python": "0.'):
            forgiven, said, _ = recheck()
    assert code == 2
    assert "12.30 % recorded" in output
    assert "different: accuracy" in output
    assert "although code, processor and library versions are the same" in error
    assert forgiven == 0
    assert said.splitlines()[-1].endswith("; other than recorded: python")


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--trajectory", "t99"), "no trajectory t99"), (("--arm", "known_x3"), "unknown arm 'known_x3': did you mean")],
)
def test_what_cannot_be_made_again_is_said_at_once(recheck, more, said):
    code, _, error = recheck(*more)
    assert code == 2
    assert said in error


# a kill


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc to find the processes")
def test_a_killed_run_continues_to_the_same_bytes(finished, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".git"))
    done = folder / "work" / "tiny" / "transfers" / CELL
    shutil.rmtree(done)
    partial, target = done.with_name(f"{CELL}.partial"), f"work/tiny/transfers/{CELL}/runs.csv"
    store = folder / "work" / "store"
    shutil.rmtree(store / "fine-tunes")

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen(command(target), cwd=folder, start_new_session=True, **quiet)
    deadline = time.monotonic() + 120
    while len(fine_tunes(store)) < 20:  # of more than a hundred
        assert running.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline, "no fine-tune was finished"
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    for process in processes_in(folder):  # jobs that have a group of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert len(fine_tunes(store)) >= 20, "killed too late to prove anything"
    (partial / "mark").touch()

    kept = fine_tunes(store)
    snakemake(folder, target)
    assert set(kept) <= set(fine_tunes(store))
    assert len(set(fine_tunes(store))) == len(fine_tunes(store))  # nothing twice
    (done / "mark").unlink()  # it went on in the folder that the kill had left
    assert content(folder / "work" / "tiny") == content(finished / "work" / "tiny")
