"""What a run has not made, and why: every job of a suite, the first cause of what waits for it, words from the logs."""

from pathlib import Path

import pytest

from benchmarks.report.failures import STATES, missing
from benchmarks.suite import load_suite

REPOSITORY = Path(__file__).parents[2]
CELLS = [
    "overflow.digits_0-4.digits_5-9.mlp.100",
    "overflow.digits_0-4.digits_5-9.normcnn.100",
    "retrodiction.digits_0-4.digits_5-9.mlp.100",
]
WORK = Path("work/smoke")
ERROR = """\
[Wed Jan  1 00:00:00 2025]
Error in rule transfer:
    message: SLURM-job '7' failed, SLURM status is: '{state}'. Detailed failure reason unavailable.
    jobid: 5
    output: work/{suite}/transfers/{cell}/runs.csv
    log: work/{suite}/logs/transfer/{cell}.log, work/slurm/rule_transfer/7.log (check log file(s))
"""


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    """The suite, in a folder where all of its work is done."""
    (tmp_path / "benchmarks").symlink_to(REPOSITORY / "benchmarks")
    monkeypatch.chdir(tmp_path)
    files = ["data.json", "landscape.csv", "cost_by_arm.csv"]
    files += [f"known/5/{file}" for file in ("known.safetensors", "facts.json", "README.md")]
    files += [f"metaset/{shard}/manifest.json" for shard in range(2)]
    files += [f"trajectories/digits_0-4.{network}/manifest.json" for network in ("mlp", "normcnn")]
    files += [f"inspection/{table}.csv" for table in ("steps", "movement", "responses")]
    files += [f"transfers/{cell}/{file}" for cell in CELLS for file in ("runs.csv", "pilots.csv", "choice.json")]
    for file in files:
        write(WORK / file)
    return load_suite("smoke")


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def lost(smoke) -> dict[str, str]:
    return {row["job"]: row["reason"] for row in missing(smoke, WORK)}


def test_of_a_finished_run_nothing_is_missing(smoke):
    assert lost(smoke) == {}


@pytest.mark.parametrize("file", ["runs.csv", "pilots.csv", "choice.json"])
def test_a_cell_is_missing_where_any_of_its_files_is(smoke, file):
    (WORK / "transfers" / CELLS[1] / file).unlink()
    assert lost(smoke).keys() == {f"transfer/{CELLS[1]}"}


def test_what_waits_for_a_job_names_the_first_cause_and_the_rest_is_there(smoke):
    (WORK / "trajectories/digits_0-4.mlp/manifest.json").unlink()
    write(WORK / "logs/forget/digits_0-4.mlp.log", "0:01 one\nknow: error: no room\n\n")
    found = lost(smoke)
    waits = {f"transfer/{cell}" for cell in CELLS if ".mlp." in cell} | {"inspect", "landscape"}
    assert found.pop("forget/digits_0-4.mlp") == "no room"
    assert found == dict.fromkeys(waits, "needs forget/digits_0-4.mlp: no room")


def test_the_cause_is_named_through_several_jobs(smoke):
    (WORK / "metaset/1/manifest.json").unlink()
    found = lost(smoke)
    assert found.pop("metaset/1") == "not run"
    assert {"metatrain/5", "inspect", "cost", *(f"transfer/{cell}" for cell in CELLS)} <= found.keys()
    assert set(found.values()) == {"needs metaset/1: not run"}


@pytest.mark.parametrize(("state", "words"), [*STATES.items(), ("FAILED", "RuntimeError: boom")])
def test_the_reason_is_the_clusters_where_it_has_one_and_the_jobs_last_words_where_not(smoke, state, words):
    (WORK / "transfers" / CELLS[0] / "runs.csv").unlink()
    write(WORK / f"logs/transfer/{CELLS[0]}.log", "Traceback\nRuntimeError: boom\n")
    said = ERROR.format(state="TIMEOUT", suite="smoke", cell=CELLS[0])
    said += ERROR.format(state=state, suite="smoke", cell=CELLS[0]) + "Trying to restart job 5.\n"
    write(Path(".snakemake/log/2025-01-01.snakemake.log"), said)
    write(Path(".snakemake/log/2025-01-02.snakemake.log"), ERROR.format(state="TIMEOUT", suite="other", cell=CELLS[0]))
    assert lost(smoke) == {f"transfer/{CELLS[0]}": words}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2025-01-01T00:00:00 DUE TO TIME LIMIT ***", "TIMEOUT"),
        ("slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2025-01-01T00:00:00 DUE TO NODE FAILURE ***", "NODE_FAIL"),
        ("slurmstepd: error: *** STEP 9.0 ON n1 CANCELLED AT 2025-01-01T00:00:00 DUE TO PREEMPTION ***", "PREEMPTED"),
        ("slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2025-01-01T00:00:00 ***", "CANCELLED"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=9.0.", "OUT_OF_MEMORY"),
        ("slurmstepd-n1.site: error: Exceeded job memory limit", "OUT_OF_MEMORY"),
    ],
)
def test_jobs_that_shared_a_submission_have_the_reason_of_its_last_log(smoke, line, words):
    (WORK / "transfers" / CELLS[0] / "runs.csv").unlink()
    names = f"    log: work/smoke/logs/transfer/{CELLS[0]}.log\n"
    write(Path("work/slurm/group_transfer/x/9.log"), f"{names}{line}\n")
    write(Path("work/slurm/group_transfer/x/8.log"), f"{names}slurmstepd: error: *** JOB 8 ON n1 CANCELLED AT 1 ***\n")
    write(Path("work/slurm/group_transfer/x/10.log"), "of another job\nslurmstepd: error: *** CANCELLED ***\n")
    assert lost(smoke) == {f"transfer/{CELLS[0]}": STATES[words]}


def test_words_of_a_program_are_no_words_of_the_cluster(smoke):
    (WORK / "transfers" / CELLS[0] / "runs.csv").unlink()
    names = f"work/smoke/logs/transfer/{CELLS[0]}.log"
    write(Path("work/slurm/rule_transfer/9.log"), f"{names}\nValueError: CANCELLED orders exceed the memory limit\n")
    write(Path(names), "ValueError: CANCELLED orders exceed the memory limit\n")
    assert lost(smoke) == {f"transfer/{CELLS[0]}": "ValueError: CANCELLED orders exceed the memory limit"}
