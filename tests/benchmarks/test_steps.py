"""The list of jobs: it is that of the workflow; what a run lacks and why; a run without Snakemake."""

import csv
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from planted_results import SUITES, TINY, run

from benchmarks import steps as listed
from benchmarks.report import publish as publishing
from benchmarks.steps import CODE, STATES, lacking, steps
from benchmarks.suite import load_suite
from know.files import PRETRAINED, read_json, write_json
from know.fingerprint import code_hash

REPOSITORY = Path(__file__).parents[2]
CELL, TINY_CELL = (f"{track}.digits_0-4.digits_5-9.mlp.100" for track in ("retrodiction", "overflow"))
"""A cell of the smoke suite, and the cell of the tiny one."""
WORK = Path("work/smoke")


# the workflow


@pytest.mark.parametrize("suite", ["smoke", "ablations/lengths", pytest.param("core/resnet8", marks=pytest.mark.slow)])
def test_the_workflow_has_the_jobs_of_the_list(suite, tmp_path, monkeypatch):
    """Every rule's outputs, inputs from other jobs, and command."""
    program = Path(sys.executable).with_name("snakemake")
    if not program.is_file():
        pytest.skip("Snakemake is not installed beside this Python")
    for name in ("Snakefile", "workflow", "benchmarks", "know", "paper_figures", "profiles", "environment.yml"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    line = [program, "--cores", "1", "--forceall", "--dry-run", "--printshellcmds", "--config", f"suite={suite}"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    jobs = {}
    for block in re.split(r"^(?=(?:local)?rule \w+:\n)", said, flags=re.M)[1:]:
        rule, command = (
            re.match(r"(?:local)?rule (\w+):", block)[1],
            re.search(r"KNOW_PROCESSES=1 python -m benchmarks (.*?) >", block),
        )
        if command:
            output = re.search(r"^    output: (.*)$", block, flags=re.M)[1].split(", ")
            read = re.search(r"^    input: (.*)$", block, flags=re.M)
            jobs[command[1]] = rule, set(output), set(read[1].split(", ") if read else ())
    every = steps(load_suite(suite), Path("work") / suite)
    made = {step.name: {path.as_posix() for path in step.outputs} for step in every}
    wanted = {}
    for step in every:
        command = " ".join([*step.command, "--suite", suite])
        wanted[command] = step.rule, made[step.name], set().union(*(made[need] for need in step.needs))
    assert jobs == wanted


def test_a_job_gets_as_many_processes_as_there_are_threads_for_it(monkeypatch):
    """A plan cannot show it: Snakemake makes the command that it runs later than the one that it prints, and names in
    an f-string have other values by then.
    """
    rules = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "workflow").glob("*.smk")]
    shells = [text for rule in rules for text in re.findall(r"shell:\s*(.*)", rule)]
    assert shells
    assert not [text for text in shells if text.startswith("f")]
    asked = []
    monkeypatch.setenv("KNOW_PROCESSES", "3")
    monkeypatch.setattr("benchmarks.trajectories.make_origin", lambda *given, **named: asked.append(named["processes"]))
    monkeypatch.setattr("benchmarks.transfer.run_cell", lambda *given, **named: asked.append(named["processes"]))
    assert run("forget", "--suite", str(TINY), "--origin", "digits_0-4.mlp") == 0
    assert run("transfer", "--suite", str(TINY), "--cell", TINY_CELL) == 0
    assert asked == [3, 3]


def test_what_asks_a_network_that_ships_depends_on_its_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    suite = load_suite("core/resnet8")
    before = {step.name: step.settings for step in steps(suite, WORK)}
    monkeypatch.setattr("benchmarks.suite.PRETRAINED", shutil.copytree(PRETRAINED, tmp_path / "pretrained"))
    assert {step.name: step.settings for step in steps(suite, WORK)} == before
    (suite.known_folder(WORK, 5) / "known.safetensors").write_bytes(b"another")
    changed = {step.rule for step in steps(suite, WORK) if step.settings != before[step.name]}
    assert changed == {"transfer", "landscape", "inspect", "cost"}


@pytest.mark.parametrize("suite", SUITES)
def test_every_job_comes_after_those_that_it_needs(suite, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    done, outputs = set(), set()
    for step in steps(load_suite(suite), Path("work") / suite):
        assert set(step.needs) <= done
        assert not outputs & set(step.outputs)
        done.add(step.name)
        outputs |= set(step.outputs)


def test_dvc_keeps_what_the_jobs_make():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    kept = [next(iter(out)) for stage in stages.values() for out in stage["outs"]]
    for step in steps(load_suite("smoke"), WORK):
        for path in step.outputs:
            under = [out for out in kept if path.as_posix() == out or path.as_posix().startswith(f"{out}/")]
            assert len(under) == (step.rule != "cost"), path  # times differ from run to run


# what a cluster is asked for


def profile(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))


def asked(expression: str | int, attempt: int) -> int:
    return eval(str(expression), {"__builtins__": {}, "min": min}, {"attempt": attempt})


def measured() -> dict[str, list[tuple[str, float, float]]]:
    """Suite, seconds and peak memory of every job that was run, by rule."""
    jobs: dict[str, list[tuple[str, float, float]]] = {}
    for path in sorted((REPOSITORY / "results").rglob("cost.csv")):
        with path.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                entry = path.parent.name, float(row["seconds"]), float(row["peak_memory_mb"])
                jobs.setdefault(row["job"].partition("/")[0], []).append(entry)
    return jobs


@pytest.mark.parametrize("name", ["slurm", "small"])
def test_a_profile_leaves_the_documented_room_for_every_job_that_was_measured(name):
    requests = profile(name)["set-resources"]
    for rule, jobs in measured().items():
        for suite, seconds, peak in jobs:
            if name == "small" and suite not in ("smoke", "released"):
                continue
            assert 60 * asked(requests[rule]["runtime"], 1) >= 3 * seconds, (rule, suite)
            assert asked(requests[rule]["mem_mb"], 1) >= 1.5 * peak + 500 - 1, (rule, suite)


@pytest.mark.parametrize("name", ["slurm", "small"])
def test_every_rule_asks_for_something_and_for_more_when_it_is_tried_again(name):
    requests = profile(name)["set-resources"]
    text = (REPOSITORY / "workflow/publish.smk").read_text(encoding="utf-8")
    assert requests.keys() == CODE.keys() | set(
        re.findall(r"^rule (\w+):\n(?:(?: .*)?\n)*?    shell:", text, flags=re.M)
    )
    for rule in ("forget", "transfer", "metaset", "metatrain"):
        for key in ("runtime", "mem_mb"):
            assert asked(requests[rule][key], 2) == 2 * asked(requests[rule][key], 1)
    assert profile("slurm")["retries"] > 0


def test_small_jobs_share_submissions_in_their_own_profile_only():
    small = profile("small")
    assert set(small["groups"].values()) == set(small["group-components"])
    assert "groups" not in profile("slurm")
    assert not {"data", "cost"} & set(small["groups"])
    assert profile("default").items() <= small.items()  # which it stands in for


def test_what_the_workflow_asks_of_a_profile_does_not_depend_on_the_command_line():
    """Snakemake replaces `config` of a profile by --config; a file that the profile names is merged with it."""
    assert "config" not in profile("slurm")
    site = yaml.safe_load((REPOSITORY / "profiles/slurm" / profile("slurm")["configfile"]).read_text(encoding="utf-8"))
    assert site["publish_incomplete"] is True
    asked_for = set(re.findall(r'config\.get\("(\w+)"', (REPOSITORY / "Snakefile").read_text(encoding="utf-8")))
    assert asked_for - {"suite"} == site.keys()


def test_profiles_name_no_site():
    text = yaml.safe_dump([profile("slurm"), profile("small")])
    assert not re.search(r"partition|account|qos", text)


# what a run lacks

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
    """The jobs of the suite, in a folder where all of its work is done."""
    (tmp_path / "benchmarks").symlink_to(REPOSITORY / "benchmarks")
    monkeypatch.chdir(tmp_path)
    every = steps(load_suite("smoke"), WORK)
    for path in (path for step in every for path in step.outputs):
        write(path)
    return every


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_of_a_finished_run_nothing_is_missing(smoke):
    assert lacking(smoke, WORK) == {}


def test_what_waits_for_a_job_names_the_first_cause_and_the_rest_is_there(smoke):
    (WORK / "trajectories/digits_0-4.mlp/manifest.json").unlink()
    write(WORK / "logs/forget/digits_0-4.mlp.log", "0:01 one\nknow: error: no room\n\n")
    missing = lacking(smoke, WORK)
    assert missing.pop("forget/digits_0-4.mlp") == "no room"
    assert missing == dict.fromkeys((f"transfer/{CELL}", "inspect"), "needs forget/digits_0-4.mlp: no room")


def test_the_cause_is_named_through_several_jobs(smoke):
    (WORK / "metaset/1/manifest.json").unlink()
    missing = lacking(smoke, WORK)
    assert missing.pop("metaset/1") == "not run"
    assert {"metatrain/5", "inspect", "cost", f"transfer/{CELL}"} <= missing.keys()
    assert set(missing.values()) == {"needs metaset/1: not run"}


@pytest.mark.parametrize(("state", "words"), [*STATES.items(), ("FAILED", "RuntimeError: boom")])
def test_the_reason_is_the_clusters_where_it_has_one_and_else_the_last_line_of_the_log(smoke, state, words):
    (WORK / "transfers" / CELL / "pilots.csv").unlink()
    write(WORK / f"logs/transfer/{CELL}.log", "Traceback\nRuntimeError: boom\n")
    said = ERROR.format(state="TIMEOUT", suite="smoke", cell=CELL)
    said += ERROR.format(state=state, suite="smoke", cell=CELL) + "Trying to restart job 5.\n"
    write(Path(".snakemake/log/2025-01-01.snakemake.log"), said)
    write(Path(".snakemake/log/2025-01-02.snakemake.log"), ERROR.format(state="TIMEOUT", suite="other", cell=CELL))
    assert lacking(smoke, WORK) == {f"transfer/{CELL}": words}


# without Snakemake


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a published run of a tiny suite of few arms and, beside it, the work."""
    folder = tmp_path_factory.mktemp("steps")
    shutil.copytree(REPOSITORY / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    text = (REPOSITORY / "tests" / "suites" / "tiny.yaml").read_text(encoding="utf-8")
    few = text.partition("  methods:\n")[0] + "  methods: {known: {depths: [1]}, shrink: {depths: [1]}}\n"
    (folder / "benchmarks" / "suites" / "tiny.yaml").write_text(few, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run("run", "--suite", "tiny") == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def there(place, tmp_path, monkeypatch) -> Path:
    """A copy of it that may be changed; the current folder."""
    folder = shutil.copytree(place, tmp_path / "there")
    monkeypatch.chdir(folder)
    return folder


def jobs_said(capsys) -> list[str]:
    return [line.split("] ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]


def test_a_second_run_computes_nothing(there, capsys):
    before = {path: path.read_bytes() for path in there.rglob("*.csv")}
    assert run("run", "--suite", "tiny") == 0
    said = jobs_said(capsys)
    assert len(said) == len(steps(load_suite("tiny"), Path("work/tiny")))
    assert all(line.endswith(": done before") for line in said)
    assert {path: path.read_bytes() for path in there.rglob("*.csv")} == before


def test_other_settings_make_anew_what_comes_after_them(there, capsys):
    suite = there / "benchmarks" / "suites" / "tiny.yaml"
    suite.write_text(suite.read_text().replace("shrink: {depths: [1]}", "shrink: {depths: [1, 2]}"))
    assert run("run", "--suite", "tiny") == 0
    said = jobs_said(capsys)
    same = ("data", "metaset/0", "metatrain/5", "forget/digits_0-4.mlp")
    assert said == [*(f"{name}: done before" for name in same), f"transfer/{TINY_CELL}", "landscape", "inspect", "cost"]
    assert "shrink_x4" in (there / "results" / "tiny" / "runs.csv").read_text()


def test_a_file_that_is_not_the_one_that_was_made_is_made_anew(there, capsys):
    path = there / "work/tiny/landscape.csv"
    before = path.read_bytes()
    path.write_bytes(before + b"x")
    assert run("run", "--suite", "tiny") == 0
    assert "landscape" in jobs_said(capsys)
    assert path.read_bytes() == before


def test_the_records_are_those_of_the_steps_by_hand(there):
    """`run` only orders the commands, which the workflow calls too."""
    shutil.move(there / "work", there / "old")
    commands = [("data",), ("forget", "--origin", "digits_0-4.mlp"), ("metaset", "--shard", "0"), ("metatrain",)]
    for name, *options in [*commands, ("transfer", "--cell", TINY_CELL)]:
        assert run(name, "--suite", "tiny", *options) == 0
    for file in (f"transfers/{TINY_CELL}/runs.csv", f"transfers/{TINY_CELL}/pilots.csv", "known/5/known.safetensors"):
        assert (there / "work" / "tiny" / file).read_bytes() == (there / "old" / "tiny" / file).read_bytes()


def test_a_device_that_is_not_there_is_one_line(there, capsys):
    assert run("forget", "--suite", "tiny", "--origin", "digits_0-4.mlp", "--device", "cuda:7") == 2
    assert "device 'cuda:7' is not available here" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_suite_names_its_device(there, capsys):
    suite = there / "benchmarks" / "suites" / "tiny.yaml"
    suite.write_text(suite.read_text() + "\ndevice: cuda\n")
    assert run("forget", "--suite", "tiny", "--origin", "digits_0-4.mlp") == 2
    assert "device 'cuda' is not available" in capsys.readouterr().err
    assert run("forget", "--suite", "tiny", "--origin", "digits_0-4.mlp", "--device", "cpu") == 0


def test_another_device_makes_everything_anew(there, monkeypatch):
    """The mark of a job names the device, so that results of two devices never mix."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    asked = []
    suite = load_suite("tiny")

    def execute(command):
        asked.append(command[0])

    work = Path("work/tiny")
    listed.run_steps(steps(suite, work), execute, work, print, "cuda")
    assert len(asked) == len(steps(suite, work))


def test_another_version_of_a_library_makes_everything_anew(there, monkeypatch):
    asked, suite, work = [], load_suite("tiny"), Path("work/tiny")
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0" if name == "pillow" else known(name))
    listed.run_steps(steps(suite, work), lambda command: asked.append(command[0]), work, print, "cpu")
    assert len(asked) == len(steps(suite, work))


# records of another machine


@pytest.fixture
def here(there, tmp_path, monkeypatch) -> Path:
    """Another folder, with results of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copytree(REPOSITORY / "results" / "smoke", folder / "results" / "smoke")
    monkeypatch.chdir(folder)
    return folder


def test_records_of_another_machine_are_taken_over_with_its_provenance(there, here):
    about = read_json(there / "results" / "tiny" / "provenance.json")
    about |= {"commit": "unknown"}
    about["environment"]["gpu"] = "NVIDIA of another machine"
    write_json(there / "results" / "tiny" / "provenance.json", about)
    assert run("merge", str(there / "results")) == 0
    assert {path.parent.name for path in here.glob("results/*/suite.json")} == {"smoke", "tiny"}
    taken = read_json(here / "results" / "tiny" / "provenance.json")
    assert taken["environment"]["gpu"] == "NVIDIA of another machine"
    assert taken["commit"] == publishing.provenance()["commit"]
    for name in ("runs.csv", "pilots.csv", "cost.csv", "known/5/README.md"):
        assert (here / "results" / "tiny" / name).read_bytes() == (there / "results" / "tiny" / name).read_bytes()
    assert publishing.check(Path("results"))


def test_what_is_there_already_of_a_suite_goes(there, here):
    shutil.copytree(there / "results" / "tiny", here / "results" / "tiny")
    (there / "results" / "tiny" / "landscape.csv").unlink()
    assert run("merge", str(there / "results")) == 0
    assert not (here / "results" / "tiny" / "landscape.csv").exists()
    assert run("merge", "results") == 2  # the results that are here, onto themselves
    assert (here / "results" / "tiny" / "runs.csv").is_file()


@pytest.mark.parametrize("damage", ["code", "metrics", "row", "nothing"])
def test_what_does_not_fit_is_refused_before_anything_is_written(there, here, capsys, damage):
    theirs = there / "results" / "tiny"
    runs = (theirs / "runs.csv").read_text()
    if damage == "code":
        (theirs / "runs.csv").write_text(runs.replace(code_hash("benchmarks.transfer:run_cell"), "0" * 16))
    elif damage == "metrics":
        write_json(theirs / "metrics.json", {})
    elif damage == "row":
        (theirs / "runs.csv").write_text(runs.replace(",ok,0", ",ok,7", 1))
    source = there / "results" if damage != "nothing" else there / "nowhere"
    assert run("merge", str(source)) == 2
    error = capsys.readouterr().err
    said = {"code": "is of other code", "metrics": "does not fit its records", "row": "line 2", "nothing": "no folder"}
    assert said[damage] in error
    assert error.count("\n") == 1
    assert not (here / "results" / "tiny").exists()


@pytest.mark.slow
def test_the_script_for_gpu_machines_runs_its_pieces_and_keeps_their_records(there):
    """On the CPU, with the tiny suite: twice, the second time without computing."""
    shutil.rmtree(there / "work")
    shutil.copytree(REPOSITORY / "know", there / "know", ignore=shutil.ignore_patterns("__pycache__"))
    surroundings = {**os.environ, "DEVICE": "cpu", "PYTHON": sys.executable}
    for again in (False, True):
        command = ["bash", "benchmarks/gpu.sh", "tiny"]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
        assert done.stdout.count("done before") == (8 if again else 0)
        assert "known_x2" in done.stdout
    assert run("merge", "work/records") == 0
    same = ("runs.csv", "pilots.csv", "metrics.json", "known/5/README.md")
    assert all(
        (there / "results" / "tiny" / f).read_bytes() == (there / "work/records/tiny" / f).read_bytes() for f in same
    )
