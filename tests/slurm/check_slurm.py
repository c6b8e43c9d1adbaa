"""The workflow on a real Slurm of one node: the same bytes as on one machine, whatever happens to its jobs.

    make slurm          (pytest -rs tests/slurm/check_slurm.py; needs root, installs Debian's packages)

It takes some minutes, and the cluster takes the machine: by its name it is none of the tests that `make test` runs.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
import yaml
from checkout import content, copy, fine_tunes, processes_in

sys.path.insert(0, str(Path(__file__).parent))
from cluster import Cluster, unavailable

REPOSITORY = Path(__file__).parents[2]
QUICK = ["--slurm-status-command=squeue", "--slurm-init-seconds-before-status-checks=3"]
QUICK += ["--latency-wait=5", "--cores=2", "--max-jobs-per-timespan=60/10s"]  # Snakemake ends a timespan after all else
IMPATIENT = """
from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor
Executor.next_seconds_between_status_checks = property(lambda self: 3, lambda self, seconds: None)
main()
"""
"""Snakemake that asks for the status of jobs every 3 seconds. The plugin by itself waits 10 seconds longer after every
question, so that a job of 20 seconds is noticed after 39, and such waiting was a quarter of a whole run.
"""
HALF, WHOLE = (f"overflow.digits_0-4.digits_5-9.mlp.{share}" for share in (50, 100))
LITTLE_MB = 450
"""Enough for Snakemake, and not for a job that imports torch."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if reason := unavailable():
        pytest.skip(f"no Slurm: {reason}")
    one = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        one.up()
        yield one
    finally:
        one.down()


def start(folder: Path, *options: str, program: Sequence[str] = ("-m", "snakemake")) -> subprocess.Popen:
    """Snakemake in `folder`; what it says goes to the file `said` there."""
    line = [sys.executable, *program, *options]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    with (folder / "said").open("w", encoding="utf-8") as said:
        return subprocess.Popen(line, cwd=folder, env=env, stdout=said, stderr=subprocess.STDOUT)


def on_slurm(folder: Path, suite: str, *options: str) -> subprocess.Popen:
    given = ["--profile=profiles/slurm", *QUICK, *options, "--config", f"suite={suite}"]
    return start(folder, *given, program=("-c", IMPATIENT))


def end(running: subprocess.Popen, folder: Path, code: int = 0) -> str:
    """Wait for the end of a run; what it said."""
    found = running.wait(timeout=3000)
    text = (folder / "said").read_text(encoding="utf-8")
    assert found == code, text[-20_000:]
    return text


def wait_until(true: Callable[[], object], running: subprocess.Popen, what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert running.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def running_job(cluster: Cluster, rule: str) -> str | None:
    """Number of a running job of a rule, whose name may go on with its wildcards."""
    jobs = cluster.jobs("RUNNING").items()
    return next((number for number, comment in jobs if comment.startswith(f"rule_{rule}")), None)


# the same bytes


def test_the_smoke_suite_makes_the_bytes_of_a_local_run(cluster, tmp_path):
    local = REPOSITORY
    if not (REPOSITORY / "work/smoke/published.json").is_file():
        local = copy(tmp_path / "local", "results")
        end(start(local, "--cores=2"), local)
    folder = copy(tmp_path / "slurm", "results")
    shutil.rmtree(folder / "results/smoke")
    said = end(on_slurm(folder, "smoke", "--workflow-profile=profiles/small"), folder)
    assert content(folder / "results") == content(local / "results")
    assert said.count("has been submitted with SLURM jobid") < said.count("\nrule ") + said.count("\n    rule ")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Callable[[str], Path]:
    """Function that makes a checkout with a suite of seconds: two cells that share their trajectories. Its transfers
    ask for too little memory at first.
    """
    suite = yaml.safe_load((REPOSITORY / "tests/suites/tiny.yaml").read_text(encoding="utf-8"))
    suite["transfer"]["shares"] = [0.5, 1.0]

    def make(name: str) -> Path:
        folder = copy(tmp_path_factory.mktemp(name) / "checkout", "results")
        (folder / "benchmarks/suites/tiny.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
        profile = folder / "profiles/slurm/config.yaml"
        settings = yaml.safe_load(profile.read_text(encoding="utf-8"))
        requests = {rule: {"runtime": 20, "mem_mb": 2000} for rule in settings["set-resources"]}
        requests["transfer"]["mem_mb"] = f"{LITTLE_MB} * 2 ** (attempt - 1)"
        profile.write_text(yaml.safe_dump({**settings, "set-resources": requests}), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="module")
def undisturbed(tiny) -> Path:
    """A local run of the suite."""
    folder = tiny("local")
    end(start(folder, "--cores=2", "--config", "suite=tiny"), folder)
    return folder


def test_a_tiny_suite_makes_the_bytes_of_a_local_run_though_its_jobs_ask_for_too_little_memory(
    cluster, tiny, undisturbed
):
    folder = tiny("calm")
    said = end(on_slurm(folder, "tiny", "--retries=2"), folder)
    assert f"mem_mb={2 * LITTLE_MB}," in said
    assert content(folder / "results") == content(undisturbed / "results")


# whatever happens


def test_what_dies_is_tried_again_and_what_fails_for_good_is_said_and_the_end_is_the_same(cluster, tiny, undisturbed):
    folder = tiny("disturbed")
    work, results = folder / "work/tiny", folder / "results/tiny"

    # a cancelled job goes on: the trajectories that it had finished are kept
    running = on_slurm(folder, "tiny", "--retries=2")
    store = folder / "work/store"

    def finished() -> list[Path]:
        return sorted(store.glob("trajectories/*/manifest.json"))

    wait_until(finished, running, "a trajectory")
    cluster.ask("scancel", running_job(cluster, "forget"))
    wait_until(lambda: not running_job(cluster, "forget"), running, "the cancelled job to end")
    made = {path: path.stat().st_ino for path in finished()}

    # one cell is cancelled as often as it is tried; the other, killed for its memory, is tried with twice as much
    def cancel_half() -> bool:
        for number, comment in cluster.jobs("RUNNING,PENDING").items():
            if comment.startswith("rule_transfer") and HALF in comment:
                cluster.ask("scancel", number)
        return running.poll() is not None

    deadline = time.monotonic() + 600
    while not cancel_half():
        assert time.monotonic() < deadline
        time.sleep(0.3)
    said = end(running, folder, code=1)
    assert {path: path.stat().st_ino for path in made} == made  # what was finished is not made again
    assert f"mem_mb={LITTLE_MB}," in said
    assert f"mem_mb={2 * LITTLE_MB}," in said
    assert content(work / "transfers" / WHOLE) == content(undisturbed / "work/tiny/transfers" / WHOLE)

    # the pages have what is there, and say what is missing and why
    failed = pd.read_csv(results / "failed.csv").set_index("job")["reason"]
    assert failed.to_dict() == {f"transfer/{HALF}": "cancelled"}
    page = (results / "README.md").read_text(encoding="utf-8")
    assert f"- `transfer/{HALF}`: cancelled" in page
    assert "| missing |" in page
    assert set(pd.read_csv(results / "runs.csv")["cell"]) == {WHOLE}

    # the node is lost in the middle of the other cell, and comes back
    running = on_slurm(folder, "tiny", "--set-resources", "transfer:mem_mb=2000")
    before = fine_tunes(store)
    enough = lambda: running_job(cluster, "transfer") and len(fine_tunes(store)) > len(before) + 20  # noqa: E731
    wait_until(enough, running, "some fine-tunes")
    number = running_job(cluster, "transfer")
    cluster.kill_node()
    for process in processes_in(folder) - {running.pid}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    kept = fine_tunes(store)
    wait_until(lambda: cluster.node().startswith("DOWN"), running, "the loss of the node")
    cluster.restart_slurmd()
    said = end(running, folder)
    assert number in cluster.jobs("COMPLETED")  # queued again by Slurm under its number, and no error to Snakemake
    assert "Error in" not in said
    assert set(kept) <= set(fine_tunes(store))
    assert content(folder / "work/tiny") == content(undisturbed / "work/tiny")
    assert content(folder / "results") == content(undisturbed / "results")
