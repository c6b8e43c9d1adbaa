"""`know compare`: planted effects get the sentence that fits; an interrupted comparison ends with the same bytes."""

import dataclasses
import functools
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import know
from know import candidates, comparison
from know.choosing import choose_files
from know.comparison import compare
from know.errors import KnowError
from know.export import Request, predict_files
from know.prediction import Overflow
from know.statistics import paired_t
from know.verdict import Row, verdict

RATES = [3e-4, 1e-4, 1e-3, 3e-3]
TASK = """
import math, os, time, zlib

TODAY, BEST = 3e-4, 1e-3
EFFECTS = {"equal": (0.0, BEST), "better": (0.01, BEST), "early": (0.0, TODAY), "worse": (-0.01, BEST)}


def fine_tune(checkpoint, learning_rate, seed):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    kind = os.environ.get("EFFECT", "equal") if checkpoint.parent.name == "known_x2" else "equal"
    gain, best = EFFECTS[kind]
    noise = zlib.crc32(repr((checkpoint.parent.name, learning_rate, seed)).encode()) % 1000 / 1e6
    score = 0.9 + gain - 0.02 * math.log(learning_rate / best) ** 2 + noise
    return score, score


def lost(checkpoint, learning_rate, seed):
    if seed == 3 and checkpoint.parent.name == "shrink_x8":
        raise RuntimeError("out of memory")
    if seed == 4 and checkpoint.parent.name == "shrink_x8":
        return math.nan
    return fine_tune(checkpoint, learning_rate, seed)


def leaves(checkpoint, learning_rate, seed):
    raise SystemExit(0)


def never(checkpoint, learning_rate, seed):
    raise RuntimeError("no such dataset")


def careless(checkpoint, learning_rate, seed):
    return 0.9 - 0.02 * math.log(learning_rate / BEST) ** 2


def changeable(checkpoint, learning_rate, seed):
    score, test = fine_tune(checkpoint, learning_rate, seed)
    return (score, test) if seed else score


def writes(checkpoint, learning_rate, seed):
    checkpoint.write_bytes(checkpoint.read_bytes() + b" ")
    raise RuntimeError("after it has written")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Folder with a trajectory `run` and the script of a task, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK)
    model, dice = torch.nn.Linear(4, 2), torch.Generator().manual_seed(0)

    def fit(model, subset):
        for parameter in model.parameters():
            parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=dice))

    return know.forget(model, [0] * 64, fit, out="run")


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        ("better", r"^A gain is left where each has its own best rate: over theta_0, known_x2 by 0\.0\d+ \[0\.00"),
        ("early", r"^At the rate of today, 0\.0003, more than theta_0: known_x2 by .*; another rate gives that too"),
        ("equal", r"^No gain of more than 0\.00\d+ is compatible with these runs"),
        ("worse", r"^No gain of more than 0\.00\d+ is compatible"),  # shrink is equal to theta_0
    ],
)
def test_planted_effects_get_the_sentence_that_fits(run, monkeypatch, effect, said):
    monkeypatch.setenv("EFFECT", effect)
    rows = compare(run, "task.py:fine_tune", RATES, out="compared")
    assert re.search(said, verdict(rows)), verdict(rows)
    page = Path("compared/README.md").read_text(encoding="utf-8")
    assert f"\n\n{verdict(rows)}\n\nThese are 4 seeds of one trajectory: they say nothing about other traj" in page
    assert {path.name for path in Path("compared").iterdir()} == {
        *("README.md", "runs.csv", "comparison.svg", "comparison.png"),
    }


def test_each_candidate_is_evaluated_on_other_seeds_than_those_that_chose_its_rate(run):
    rows = compare(run, "task.py:fine_tune", RATES, out="compared", seeds=3, pilots=2)
    lines = Path("compared/runs.csv").read_text().splitlines()[1:]
    runs = [dict(zip(comparison.COLUMNS, line.split(","), strict=True)) for line in lines]
    seeds = {stage: {run["seed"] for run in runs if run["stage"] == stage} for stage in ("pilot", "evaluation")}
    assert seeds == {"pilot": {"0", "1"}, "evaluation": {"2", "3", "4"}}
    tried = {(run["candidate"], run["learning_rate"]) for run in runs if run["stage"] == "pilot"}
    assert len(tried) == 4 * len(RATES)
    assert {row.learning_rate for row in rows if row.policy == "today"} == {RATES[0]}
    stage, tuned = "evaluation", {row.candidate: row for row in rows if row.policy == "tuned"}
    for name, row in tuned.items():  # between the neighbours of the best rate; only the chosen rate is evaluated
        assert 3e-4 < row.learning_rate < 3e-3
        assert not row.on_edge
        evaluated = {float(run["learning_rate"]) for run in runs if (run["stage"], run["candidate"]) == (stage, name)}
        assert evaluated == {RATES[0], row.learning_rate}


def test_a_best_rate_at_the_end_of_the_grid_is_said_and_no_rate_beyond_it_is_tried(run):
    rows = compare(run, "task.py:fine_tune", [3e-4, 1e-4], out="compared")
    assert {row.learning_rate for row in rows} == {3e-4}
    assert all(row.on_edge == (row.policy == "tuned") for row in rows)
    page = Path("compared/README.md").read_text(encoding="utf-8")
    assert "The best rate of known_x2, known_x8, shrink_x8, theta_0 lies on an edge of those tried" in page
    assert (
        Path("compared/runs.csv").read_text().count("evaluation,") == 4 * 4
    )  # at today's rate, which is the chosen one


def test_a_lost_fine_tune_costs_itself_alone_and_is_shown(run):
    rows = compare(run, "task.py:lost", RATES, out="compared")
    counts = {row.candidate: (row.n, row.failed) for row in rows if row.policy == "tuned"}
    assert counts == {"theta_0": (4, 0), "known_x2": (4, 0), "known_x8": (4, 0), "shrink_x8": (2, 2)}
    page = Path("compared/README.md").read_text(encoding="utf-8")
    assert "seed 3: RuntimeError: out of memory" in page
    assert "seed 4: the score is nan" in page
    assert "Fine-tunes without a score: shrink_x8 (0 in the search, 2 after it)" in verdict(rows)


@pytest.mark.parametrize(("task", "said"), [("never", "no such dataset"), ("leaves", "SystemExit")])
def test_a_task_that_never_works_is_said_with_its_error(run, task, said):
    with pytest.raises(KnowError, match=f"no fine-tune gave a score.*{said}"):
        compare(run, f"task.py:{task}", RATES, out="compared")
    assert not Path("compared").exists()


def test_a_task_that_writes_to_its_checkpoint_is_stopped_at_once(run):
    with pytest.raises(KnowError, match=r"the task changed .*s0\.safetensors, which it should only read"):
        compare(run, "task.py:writes", RATES, out="compared")


def test_a_candidate_that_the_task_has_changed_is_made_anew(run):
    Path("once.py").write_text(
        TASK + "\n\ndef once(checkpoint, learning_rate, seed):\n"
        "    if checkpoint.parent.name == 'known_x2' and not os.path.exists('done'):\n"
        "        open('done', 'w').close()\n"
        "        checkpoint.unlink()\n"
        "    return fine_tune(checkpoint, learning_rate, seed)\n"
    )
    with pytest.raises(KnowError, match=r"the task changed .*known_x2"):
        compare(run, "once.py:once", RATES, out="compared")
    assert compare(run, "once.py:once", RATES, out="compared")


def test_an_error_that_cannot_be_written_or_read_costs_its_run_alone(run):
    class Silent(Exception):
        def __str__(self):
            raise ValueError

    def task(checkpoint, learning_rate, seed):
        if checkpoint.parent.name == "shrink_x8":
            raise Silent if seed == 3 else OSError("no file bad\udcff")
        return learning_rate + seed

    compare(run, task, RATES, out="compared", seeds=np.int64(2))
    page = Path("compared/README.md").read_text(encoding="utf-8")
    assert "Silent" in page
    assert "bad\\udcff" in page


@pytest.mark.slow
def test_a_script_that_a_worker_cannot_load_is_said(run):
    guard = "import multiprocessing\nif multiprocessing.parent_process():\n    raise RuntimeError('not here')\n"
    Path("task.py").write_text(guard + TASK)
    with pytest.raises(KnowError, match="RuntimeError: not here"):
        compare(run, "task.py:fine_tune", RATES, out="compared", jobs=2)


@pytest.mark.slow
def test_what_a_script_defines_reaches_the_processes_that_its_task_starts(run):
    Path("loads_data.py").write_text(
        "import multiprocessing\n\n\ndef score(x):\n    return x\n\n\n"
        "def fine_tune(checkpoint, learning_rate, seed):\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        return pool.apply(score, (learning_rate + seed,))\n"
    )
    rows = compare(run, "loads_data.py:fine_tune", RATES[:2], out="compared", seeds=2, pilots=1)
    assert not any(row.failed for row in rows)


def test_nothing_is_made_inside_a_checkpoint_that_is_a_folder(run, tmp_path):
    for k, path in enumerate(run.paths):
        (tmp_path / f"c{k}").mkdir()
        shutil.copy(path, tmp_path / f"c{k}" / "model.safetensors")
    trajectory = know.Trajectory.from_checkpoints([tmp_path / f"c{k}" for k in range(5)], run.fractions)
    for make in (
        lambda out: compare(trajectory, "task.py:fine_tune", RATES, out=out),
        lambda out: predict_files(trajectory, Request("linear"), out),
        lambda out: choose_files(trajectory, [Request("linear")], out, "task.py:fine_tune"),
    ):
        with pytest.raises(KnowError, match=r"lies inside the checkpoint .*c4; name a folder beside it"):
            make(tmp_path / "c4" / "better")


def test_what_failed_is_tried_again_when_its_cause_is_gone(run):
    given = {"rates": RATES, "seeds": 2}
    compare(run, "task.py:fine_tune", **given, out="whole")
    broken = TASK.replace("    time.sleep(", "    open('data.txt')\n    time.sleep(")
    Path("task.py").write_text(broken)
    with pytest.raises(KnowError, match=r"data\.txt"):
        compare(run, "task.py:fine_tune", **given, out="mended")
    Path("data.txt").touch()
    compare(run, "task.py:fine_tune", **given, out="mended")
    pages = [Path(name, "runs.csv").read_bytes() for name in ("whole", "mended")]
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_a_process_that_dies_at_its_first_result_may_lack_memory_or_the_guard(run):
    Path("dies.py").write_text("import os\n\n\ndef fine_tune(checkpoint, learning_rate, seed):\n    os._exit(1)\n")
    with pytest.raises(KnowError, match=r"lack of memory.*__main__"):
        compare(run, "dies.py:fine_tune", RATES, out="compared", jobs=2)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_comparison_goes_on_to_the_same_bytes(run, folder_bytes, jobs):
    """Only what is killed needs a process of its own; the other two runs are calls."""
    given = {"task": "task.py:fine_tune", "rates": [3e-4, 1e-3], "seeds": 2, "keep": True}
    compare(run, **given, out="whole")
    line = [sys.executable, "-m", "know", "compare", "run", "--task", "task.py:fine_tune", "--rates", "3e-4,1e-3"]
    line += ["--seeds", "2", "--jobs", str(jobs), "--keep", "--out", "cut"]
    process = subprocess.Popen(line, env={**os.environ, "PAUSE": "0.2"}, stdout=subprocess.DEVNULL)
    results = Path("cut.partial/results.jsonl")
    while not (results.is_file() and results.read_text().count("\n") >= 3):
        assert process.poll() is None
        time.sleep(0.05)
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")  # on Linux
    workers = [Path("/proc", pid) for pid in listed.read_text().split()] if listed.is_file() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(worker.exists() for worker in workers):  # they end with it, and hold no memory
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with results.open("a") as file:
        file.write('{"candidate": "theta')  # what a kill in the middle of a line leaves
    said = []
    compare(run, **given, jobs=jobs, out="cut", say=said.append)
    assert "of them done" in said[0]
    assert " 0 of them done" not in said[0]
    assert folder_bytes(Path("cut")) == folder_bytes(Path("whole"))
    assert not Path("cut.partial").exists()


def test_the_best_candidate_is_kept_if_asked(run, monkeypatch):
    monkeypatch.setenv("EFFECT", "better")
    compare(run, "task.py:fine_tune", RATES, out="compared", keep=True)
    best = load_file("compared/best/model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in know.predict(run).items())


def test_nothing_is_kept_where_nothing_is_seen_to_gain(run):
    said = []
    compare(run, "task.py:fine_tune", RATES, out="compared", keep=True, say=said.append)
    assert said[-1] == "nothing is kept, since neither a prediction nor a control is seen to gain"
    assert not Path("compared/best").exists()


def test_a_prediction_that_overflows_is_left_out_and_named(run, monkeypatch):
    real = candidates.write_prediction

    def write(trajectory, request, folder):
        if request.depth == 3:
            raise Overflow("known overflows at tensor 'weight'")
        return real(trajectory, request, folder)

    monkeypatch.setattr(candidates, "write_prediction", write)
    said = []
    rows = compare(run, "task.py:fine_tune", RATES, out="compared", say=said.append)
    assert {row.candidate for row in rows} == {"theta_0", "known_x2"}
    assert said[0] == "known_x8 is left out: known overflows at tensor 'weight'"
    assert "Not finite, and so not compared: known_x8, shrink_x8." in Path("compared/README.md").read_text()


def test_a_task_that_ignores_its_seed_is_told_so(run):
    assert "if the task does not use its seed, these are one run" in verdict(
        compare(run, "task.py:careless", RATES, out="compared")
    )


def test_a_task_that_returns_now_one_value_and_now_two_is_refused(run):
    with pytest.raises(KnowError, match="one value in some runs and two in others"):
        compare(run, "task.py:changeable", RATES, out="compared")


# the sentences, from rows made by hand


def rows(*candidates) -> list[Row]:
    """Rows of theta_0 and of others, each: name, then today's and the tuned difference with its ends, then facts."""
    made = [Row("theta_0", policy, 1e-3, False, 60.0, 0, 0, 0, 4, 0, "theta_0") for policy in ("today", "tuned")]
    for name, today, tuned, facts in candidates:
        for policy, (mean, low, high) in (("today", today), ("tuned", tuned)):
            own = {key: value for key, value in facts.items() if key == "kind" or policy == "tuned"}
            made.append(
                Row(
                    name, policy, 1e-3, own.pop("on_edge", False), 60.0, mean, low, high, 4, own.pop("failed", 0), **own
                )
            )
    return made


GAIN, NOTHING, LOSS = (0.5, 0.1, 0.9), (0.1, -0.3, 0.5), (-1.0, -1.2, -0.8)
CONTROL = {"kind": "control"}


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        (
            [("known_x2", GAIN, GAIN, {})],
            "A gain is left where each has its own best rate: over theta_0, known_x2 by 0.5 [0.1, 0.9].",
        ),
        (
            [("known_x2", GAIN, GAIN, {"on_edge": True})],
            "A gain is left at the best of the rates tried: over theta_0, known_x2 by 0.5 [0.1, 0.9]. The best rate"
            " of known_x2 lies on an edge of those tried, so the rate may be the cause of a difference: give rates"
            " beyond it.",
        ),
        (
            [("known_x2", GAIN, NOTHING, {})],
            "At the rate of today, 0.001, more than theta_0: known_x2 by 0.5 [0.1, 0.9]; no gain is seen at tuned"
            " rates, where the difference is 0.1 [-0.3, 0.5].",
        ),
        (
            [("known_x2", GAIN, (-0.1, -0.2, 0.05), {})],
            "At the rate of today, 0.001, more than theta_0: known_x2 by 0.5 [0.1, 0.9]; another rate gives that too, "
            "since at tuned rates the difference is -0.1 [-0.2, 0.05].",
        ),
        (
            [("known_x2", LOSS, LOSS, {}), ("shrink_x8", GAIN, GAIN, CONTROL)],
            "No prediction is seen to gain, and others are: over theta_0, shrink_x8 by 0.5 [0.1, 0.9]. "
            "Less than theta_0: known_x2 by -1 [-1.2, -0.8].",
        ),
        (
            [("known_x2", LOSS, (-0.5, -0.9, -0.1), {}), ("known_x8", LOSS, (-0.2, -0.25, -0.15), {})],
            "All candidates score less than theta_0 at tuned rates, the best of them by -0.2 [-0.25, -0.15].",
        ),
        (
            [("known_x2", NOTHING, (0.1, -0.8, 1.0449), {})],
            "No gain of more than 1.1 is compatible with these runs at tuned rates.",
        ),
        (
            [("known_x2", GAIN, (math.nan,) * 3, {"failed": 4}), ("known_x8", NOTHING, NOTHING, {})],
            "Nothing can be said of known_x2: fewer than two seeds have a score. No gain of more than 0.5 is compatible"
            " with these runs at tuned rates. Fine-tunes without a score:"
            " known_x2 (0 in the search, 4 after it). In the search each takes its rate from the candidate; after it"
            " each is left out of a difference, which favours a candidate that fails where it would do badly.",
        ),
    ],
)
def test_the_verdict_says_what_the_rows_show_and_no_more(candidates, said):
    assert verdict(rows(*candidates)) == said


def test_fine_tunes_that_are_lost_at_the_rate_of_today_are_said_too():
    made = rows(("known_x2", GAIN, NOTHING, {}))
    made = [
        dataclasses.replace(row, failed=2, learning_rate=3e-4)
        if (row.candidate, row.policy) == ("known_x2", "today")
        else row
        for row in made
    ]
    assert "known_x2 (0 in the search, 2 after it)" in verdict(made)


def test_an_interval_without_width_is_doubted():
    said = "All seeds gave known_x2 the same difference to theta_0"
    assert said in verdict(rows(("known_x2", NOTHING, (0.01, 0.01, 0.01), {})))
    assert said not in verdict(rows(("known_x2", NOTHING, GAIN, {})))


def test_a_difference_to_a_control_without_width_is_doubted():
    found = verdict([*rows(("known_x2", NOTHING, GAIN, {"beside": {"shrink_x2": paired_t([0.02] * 4)}}))])
    assert "known_x2 the same difference to shrink_x2" in found


def test_scores_that_depend_on_the_seed_alone_are_said_to(run):
    compare(run, lambda checkpoint, learning_rate, seed: seed / 10, RATES, out="compared")
    page = Path("compared/README.md").read_text(encoding="utf-8")
    assert "No score depends on the weights that fine-tuning starts at." in page
    assert "No gain of more than" not in page
    assert "the same difference to theta_0" in page


def test_known_is_told_from_its_control(run, monkeypatch):
    """All that the task finds better is known_x2; x8 is as good as shrinking by as much."""
    monkeypatch.setenv("EFFECT", "better")
    found = {
        row.candidate: row for row in compare(run, "task.py:fine_tune", RATES, out="compared", methods=["shrink:1"])
    }
    assert set(found["known_x8"].beside) == {"shrink_x8"}
    assert found["known_x2"].beside["shrink_x2"].low > 0
    assert not found["shrink_x8"].beside


def test_further_candidates_and_a_continuation_take_part(run):
    model = torch.nn.Linear(4, 2)
    trajectory = know.forget(
        model,
        [0] * 64,
        lambda model, subset: model.weight.data.add_(0.01),
        out="other",
        references={"continuation": {name: tensor + 1 for name, tensor in model.state_dict().items()}},
    )
    rows = compare(trajectory, "task.py:fine_tune", RATES, out="compared", methods=["linear:2", "mean", "known:1"])
    names = ["theta_0", "known_x2", "known_x8", "shrink_x8", "linear_x4", "mean", "continuation"]
    assert [row.candidate for row in rows if row.policy == "today"] == names


def test_checkpoints_of_the_user_take_part_and_are_told_apart_by_their_bytes(run):
    """The better one lies in a folder that the task of these tests finds better."""
    Path("known_x2").mkdir()
    weights = {name: tensor + 1 for name, tensor in run.theta_0.items()}
    save_file(weights, "known_x2/model.safetensors")
    torch.save(weights, "plain.pt")
    given = {"rates": RATES, "beside": {"trained-on": "known_x2/model.safetensors", "plain": Path("plain.pt")}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFECT", "better")
        rows = compare(run, "task.py:fine_tune", **given, out="compared", keep=True)
    tuned = {row.candidate: row for row in rows if row.policy == "tuned"}
    assert list(tuned)[-2:] == ["trained-on", "plain"]
    assert tuned["trained-on"].low > 0 > tuned["plain"].low
    assert tuned["known_x2"].low > 0  # it is as good as the one, and better than the other
    assert tuned["known_x2"].beside["plain"].low > 0 >= tuned["known_x2"].beside["trained-on"].low
    assert not any(row.beside for row in rows if row.policy == "today" or row.candidate in given["beside"])
    said = verdict(rows)
    assert "More than plain: known_x2 by 0.00" in said
    assert "No prediction is seen to score more than trained-on; the most is known_x2, by " in said
    page = Path("compared/README.md").read_text(encoding="utf-8")
    assert "| minus trained-on |" in page
    assert "\n\n\n" not in page
    with pytest.raises(KnowError, match="one value in some runs"):
        compare(run, "task.py:changeable", **given, out="again")
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, "plain.pt")
    with pytest.raises(KnowError, match=r"unfinished work of other settings \(beside\)"):
        compare(run, "task.py:changeable", **given, out="again")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rates": [1e-3]}, "at least 2 different rates"),
        ({"rates": [1e-3, 1e-3]}, "at least 2 different rates"),
        ({"rates": [0, 1e-3]}, "above 0"),
        ({"rates": "fast"}, "rates must be numbers"),
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"pilots": 0}, "pilots must be at least 1"),
        ({"task": "task.py:nothing"}, "has no function 'nothing'"),
        ({"methods": ["known:two"]}, "NAME:depth"),
        ({"methods": ["lineer"]}, "did you mean 'linear'"),
        ({"methods": ["known:999999"]}, "times the data"),
        ({"methods": 5}, "methods must be a list"),
        ({"beside": {"own": "nowhere.pt"}}, "nowhere.pt does not exist"),
        ({"beside": {"own": "task.py"}}, "task.py is corrupt or holds more than tensors"),
        ({"beside": {"theta_0": "run/s0.safetensors"}}, "'theta_0' is a candidate already"),
        ({"beside": {"a | b": "run/s0.safetensors"}}, "letters, digits"),
        ({"beside": {"..": "run/s0.safetensors"}}, "letters, digits"),
        ({"roles": ["a"]}, "roles must map patterns"),
        ({"beside": ["run/s0.safetensors"]}, "beside must map names"),
        ({"beside": {"own": 5}}, "beside must be a path"),
        ({"trajectory": None}, "trajectory must be a Trajectory"),
        ({"task": 5}, "task must be a function"),
        ({"jobs": 2, "task": math.log}, "SCRIPT.py:function"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(run, change, said):
    before = sorted(Path().iterdir())
    with pytest.raises(KnowError, match=said):
        compare(**{"trajectory": run, "task": "task.py:fine_tune", "rates": RATES, "out": "compared", **change})
    assert sorted(Path().iterdir()) == before


def test_a_trajectory_of_another_length_is_compared_without_known(run):
    said = []
    compare(run.last(3), "task.py:fine_tune", RATES, out="compared", methods=["linear"], say=said.append)
    assert said[0] == "KNOWN and shrink are left out: they ask a network of 5 snapshots, and this trajectory has 3"
    lines = Path("compared/runs.csv").read_text().splitlines()[1:]
    assert {line.split(",")[1] for line in lines} == {"theta_0", "linear_x2"}


def test_what_is_left_alone_in_a_prediction_is_left_alone_in_its_comparison(run):
    with open("look.py", "w") as script:
        script.write(LOOK)
    command = [sys.executable, "-m", "know", "compare", "run", "--task", "look.py:look", "--rates", "1,2"]
    subprocess.run([*command, "--skip", "bias", "--out", "compared"], check=True)
    assert Path("seen.txt").read_text().split() == ["True"] * len(Path("seen.txt").read_text().split())


LOOK = """
from safetensors.torch import load_file

BIAS = load_file("run/s0.safetensors")["bias"]


def look(checkpoint, learning_rate, seed):
    with open("seen.txt", "a") as file:
        print((load_file(checkpoint)["bias"] == BIAS).all().item(), file=file)
    return learning_rate + seed
"""


def test_checkpoints_of_the_user_may_have_their_weights_in_the_entry_of_theta_0(run):
    paths = [Path(f"{k}.pt") for k in range(5)]
    for path, state in zip(paths, run.states, strict=True):
        torch.save({"state_dict": state}, path)
    trajectory = know.Trajectory.from_checkpoints(paths, run.fractions, key="state_dict")
    torch.save(run.theta_0, "plain.pt")
    rows = compare(
        trajectory, "task.py:careless", RATES, out="compared", beside={"own": paths[-1], "plain": "plain.pt"}
    )
    assert {"own", "plain"} <= {row.candidate for row in rows}


def test_a_task_loads_every_checkpoint_as_it_loads_theta_0(run, tmp_path):
    """Theta_0 is a file of safetensors: others are copied into one, as soon as it is clear what their tensors are."""
    further = {name: tensor + 1 for name, tensor in run.theta_0.items()}
    torch.save(further, "plain.pt")
    torch.save({"epoch": 3, "net": {f"module.{name}": tensor for name, tensor in further.items()}}, "nested.pt")
    save_file({f"module.{name}": tensor for name, tensor in further.items()}, "wrapped.safetensors")
    (tmp_path / "folder").mkdir()
    save_file(further, "folder/model.safetensors")
    save_file({name: tensor.half() for name, tensor in further.items()}, "as_it_is.safetensors")
    seen, said = {}, []

    def task(checkpoint, learning_rate, seed):
        state = load_file(checkpoint)
        torch.nn.Linear(4, 2).load_state_dict(state)
        seen[checkpoint] = state
        return float(state["bias"].sum())

    given = ("plain.pt", "nested.pt", "wrapped.safetensors", "folder", "as_it_is.safetensors")
    beside = {Path(name).stem: name for name in given}
    rows = compare(run, task, RATES, out="compared", beside=beside, say=said.append)
    assert not any(row.failed for row in rows)
    copied = {path.parent.name: state for path, state in seen.items() if path.parent.name in beside}
    assert copied.keys() == beside.keys() - {"as_it_is"}
    assert all(torch.equal(state[name], further[name]) for state in copied.values() for name in further)
    assert seen[Path("as_it_is.safetensors")]["bias"].dtype == torch.float16
    assert "plain: the task gets a copy in the layout of s0.safetensors" in said
    assert sum("names were matched" in line for line in said) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weight": torch.zeros(2, 4)}, r"tensor 'bias' has shape \(2,\) in .*, and own.pt lacks it"),
        (
            {"weight": torch.zeros(2, 5), "bias": torch.zeros(2)},
            r"shape \(2, 4\) in .*, and \(2, 5\) in own.pt",
        ),
        ({"model": {"bias": torch.zeros(2)}, "ema": {"bias": torch.zeros(2)}}, r"in several entries \(model, ema\)"),
    ],
)
def test_a_checkpoint_that_cannot_take_the_place_of_theta_0_is_refused_before_any_work(run, content, said):
    torch.save(content, "own.pt")
    with pytest.raises(KnowError, match=said):
        compare(run, "task.py:fine_tune", RATES, out="compared", beside={"own": "own.pt"})
    assert not Path("compared.partial").exists()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "NoneType"),
        ({"accuracy": 1}, "dict"),
        ((1, 2, 3), r"\(int, int, int\)"),
        ((0.5, None), r"\(float, NoneType\)"),
        (torch.zeros(2), "Tensor"),
        (10**400, "int"),
        (True, "bool"),
        ("0.5", "str"),
    ],
)
def test_a_task_that_returns_no_score_stops_at_its_first_run_and_may_be_mended(run, answer, said):
    calls = []

    def task(checkpoint, learning_rate, seed):
        calls.append(seed)
        return answer

    with pytest.raises(KnowError, match=f"must return one number, or two .*; it returned {said}"):
        compare(run, task, RATES, out="compared")
    assert len(calls) == 1
    assert compare(run, "task.py:fine_tune", RATES, out="compared")


def test_a_run_that_returns_no_score_after_others_did_is_lost_alone(run):
    def task(checkpoint, learning_rate, seed):
        return None if (checkpoint.parent.name, seed) == ("shrink_x8", 3) else learning_rate + seed

    rows = compare(run, task, RATES, out="compared")
    assert {row.candidate: row.failed for row in rows if row.policy == "tuned"}["shrink_x8"] == 1
    assert "it returned NoneType" in Path("compared/README.md").read_text(encoding="utf-8")


def test_a_decorator_that_gives_or_takes_an_argument_makes_another_function_of_a_task(run):
    def decorated(function):
        @functools.wraps(function)
        def inner(checkpoint, learning_rate, seed):
            return function(checkpoint, learning_rate, seed, "cpu")

        return inner

    @decorated
    def task(checkpoint, learning_rate, seed, device):
        return learning_rate + seed

    assert compare(run, task, RATES, out="compared")


def test_a_task_that_takes_something_else_is_refused_before_any_work(run):
    with pytest.raises(KnowError, match=r"is called as fine_tune\(checkpoint, learning_rate, seed\): too many"):
        compare(run, lambda checkpoint, learning_rate: 0.5, RATES, out="compared")
    assert not Path("compared.partial").exists()


def test_a_copy_is_made_whatever_role_the_tensors_have(run):
    """Nothing of it is predicted, so nothing has to be predictable."""
    states = [{**state, "codes": torch.zeros(3).to(torch.float8_e4m3fn)} for state in run.states]
    for k, state in enumerate(states):
        save_file(state, f"{k}.safetensors")
    trajectory = know.Trajectory.from_checkpoints([f"{k}.safetensors" for k in range(5)], run.fractions)
    torch.save(states[0], "own.pt")
    asked = {"beside": {"own": "own.pt"}, "roles": {"codes": "skip"}}
    assert not any(row.failed for row in compare(trajectory, "task.py:fine_tune", RATES, out="compared", **asked))


TIED = {"a.weight": torch.zeros(2, 4), "b.weight": torch.zeros(2, 4)}


@pytest.mark.parametrize(
    ("theta_0", "given", "said"),
    [
        (TIED, {"a.weight": torch.ones(2, 4)}, ""),
        (TIED, {name: torch.ones(2, 4) for name in TIED}, ""),
        (TIED, {"a.weight": torch.ones(2, 4), "b.weight": torch.zeros(2, 4)}, "differ, and in .* they are one tensor"),
        ({"a.weight": torch.zeros(2, 4).half()}, {"a.weight": torch.full((2, 4), 7e4)}, "values .* are too large"),
        ({"a.weight": torch.zeros(2, 4)}, {"a.weight": torch.zeros(2, 4, dtype=torch.int8)}, "floating-point in"),
        (
            {"a.weight": torch.zeros(2, 4)},
            {"a.weight": torch.zeros(2, 4).to_sparse()},
            "sparse, which cannot be written",
        ),
    ],
)
def test_a_copy_has_the_values_of_the_checkpoint_or_is_refused(tmp_path, monkeypatch, theta_0, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    paths, kind = [], theta_0["a.weight"].dtype
    for k in range(5):
        moved = (theta_0["a.weight"] + 0.01 * k).to(kind)
        state = dict.fromkeys(theta_0, moved)  # tied, where there are two names
        paths.append(f"{k}.pt")
        torch.save(state, paths[-1])
    trajectory = know.Trajectory.from_checkpoints(paths, [0.0625, 0.125, 0.25, 0.5, 1])
    torch.save({"net": given}, "own.pt")  # in another layout
    seen = []

    def task(checkpoint, learning_rate, seed):
        if checkpoint.parent.name == "own":
            seen.append(torch.load(checkpoint, weights_only=True))
        return learning_rate

    asked = {"out": "compared", "beside": {"own": "own.pt"}}
    if said:
        with pytest.raises(KnowError, match=said):
            compare(trajectory, task, RATES, **asked)
        assert not seen
    else:
        compare(trajectory, task, RATES, **asked)
        assert {name: float(tensor.mean()) for name, tensor in seen[0].items()} == dict.fromkeys(theta_0, 1.0)


def test_what_stands_beside_the_weights_of_theta_0_stands_beside_those_of_others(run, tmp_path):
    """A task may need it: a configuration in the folder, or an entry of the file."""
    for k, state in enumerate(run.states):
        (tmp_path / f"s{k}").mkdir()
        save_file(state, f"s{k}/model.safetensors")
        Path(f"s{k}/config.json").write_text("{}")
    trajectory = know.Trajectory.from_checkpoints([f"s{k}" for k in range(5)], run.fractions)
    (tmp_path / "own").mkdir()
    save_file({name: tensor + 1 for name, tensor in run.theta_0.items()}, "own/model.safetensors")

    def task(checkpoint, learning_rate, seed):
        return learning_rate + len((checkpoint / "config.json").read_text())

    rows = compare(trajectory, task, RATES, out="compared", beside={"own": "own"})
    assert not any(row.failed for row in rows)


def test_of_an_error_all_is_shown_since_torch_names_the_tensors_on_later_lines(run):
    def task(checkpoint, learning_rate, seed):
        if checkpoint.parent.name == "shrink_x8":
            torch.nn.Linear(5, 2).load_state_dict(load_file(checkpoint))
        return learning_rate

    rows = compare(run, task, RATES, out="compared")
    page = Path("compared/README.md").read_text(encoding="utf-8")
    assert "size mismatch for weight" in page
    assert "Nothing can be said of shrink_x8" in verdict(rows)
    assert "The best rate of known_x2, known_x8, theta_0 lies on an edge" in verdict(rows)  # shrink_x8 has none


def test_a_refused_request_leaves_nothing_behind(run):
    for asked in ("rre:3", "known:2 "):
        with pytest.raises(KnowError):
            compare(run, "task.py:fine_tune", RATES, out="compared", methods=[asked])
    with pytest.raises(KnowError, match="takes 5 snapshots, and was asked about 4"):
        compare(run.last(4), "task.py:fine_tune", RATES, out="compared")
    assert not Path("compared.partial").exists()
    compare(run, "task.py:fine_tune", RATES, out="compared")


def test_all_candidates_have_the_same_names_where_prefixes_are_stripped(run):
    paths = []
    for path in run.paths:
        paths.append(path.with_name(f"wrapped-{path.name}"))
        save_file({f"module.{name}": tensor for name, tensor in load_file(path).items()}, paths[-1])
    wrapped = know.Trajectory.from_checkpoints(paths, run.fractions, strip="module.")

    def task(checkpoint, learning_rate, seed):
        return learning_rate if load_file(checkpoint).keys() == run.theta_0.keys() else math.nan

    assert not any(row.failed for row in compare(wrapped, task, RATES, out="compared"))


def test_a_task_may_change_the_working_directory(run, tmp_path):
    def task(checkpoint, learning_rate, seed):
        size = len(load_file(checkpoint))
        os.chdir("/")
        return size + learning_rate

    own = know.Trajectory.from_checkpoints([Path("run") / path.name for path in run.paths], run.fractions)
    assert not any(row.failed for row in compare(own, task, RATES, out="compared"))
    assert Path.cwd() == tmp_path


def test_an_interruption_after_the_best_was_kept_costs_nothing(run, monkeypatch):
    monkeypatch.setenv("EFFECT", "better")

    def say(line):
        if line.startswith("kept"):
            raise KeyboardInterrupt

    given = {"task": "task.py:fine_tune", "rates": RATES, "out": "compared", "keep": True}
    with pytest.raises(KeyboardInterrupt):
        compare(run, **given, say=say)
    compare(run, **given)
    assert Path("compared/best/model.safetensors").is_file()


def test_a_comparison_that_cannot_take_its_name_goes_on_from_its_results(run, monkeypatch):
    def write(folder, *rest):
        Path("compared").mkdir()
        Path("compared/note.txt").touch()
        return written(folder, *rest)

    written, said = comparison._write_pages, []
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "_write_pages", write)
        with pytest.raises(KnowError, match="exists by now"):
            compare(run, "task.py:fine_tune", rates=RATES, out="compared")
    shutil.rmtree("compared")
    compare(run, "task.py:fine_tune", rates=RATES, out="compared", say=said.append)
    most, done = re.search(r"at most (\d+) fine-tunes, (\d+) of them done", "\n".join(said)).groups()
    assert most == done
    assert not Path("compared/results.jsonl").exists()


def test_predictions_are_held_against_their_own_controls_alone(run):
    rows = compare(run, "task.py:fine_tune", RATES, out="compared", methods=["linear:3", "shrink_and_perturb"])
    beside = {row.candidate: set(row.beside) for row in rows if row.policy == "tuned"}
    assert beside["known_x8"] == {"shrink_x8"}
    assert not any(others for name, others in beside.items() if name != "known_x8")


def test_rates_are_chosen_on_validation_and_differences_are_of_the_test_scores(run):
    """Of the two scores one would choose the largest rate, and the other one the middle."""

    def tested(checkpoint, learning_rate, seed):
        name = "theta_0" if checkpoint.parent.name == "run" else checkpoint.parent.name
        return zlib.crc32(repr((name, learning_rate, seed)).encode()) % 1000 + 5000 * learning_rate

    def task(checkpoint, learning_rate, seed):
        return -(math.log(learning_rate / 1e-3) ** 2), tested(checkpoint, learning_rate, seed)

    rows = compare(run, task, RATES, out="compared", seeds=5, pilots=1)
    for row in rows:
        assert row.learning_rate == (RATES[0] if row.policy == "today" else pytest.approx(1e-3, rel=0.3))
        rates = {row.candidate: row.learning_rate, "theta_0": rate_of(rows, "theta_0", row.policy)}
        place = {name: Path("run/s0") if name == "theta_0" else Path(name, "model") for name in rates}
        own, base = ([tested(place[n], rates[n], s) for s in range(1, 6)] for n in (row.candidate, "theta_0"))
        # four differences are read together: of three candidates to theta_0, and of known_x8 to its control
        expected = paired_t([a - b for a, b in zip(own, base, strict=True)], comparisons=4)
        assert row.score == pytest.approx(sum(own) / 5)
        assert (row.difference, row.low, row.high) == pytest.approx((expected.mean, expected.low, expected.high))


def rate_of(rows, candidate: str, policy: str) -> float:
    return next(row.learning_rate for row in rows if (row.candidate, row.policy) == (candidate, policy))
