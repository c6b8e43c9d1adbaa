"""Does a prediction help on the user's own task? theta_0 and the candidates, each at today's rate and at its own best.

The protocol is that of the benchmark: one grid of learning rates for all candidates, each one's rate chosen on pilot
seeds by `know.rates`, then frozen, and differences to theta_0 paired over other seeds. Needs scipy and matplotlib.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import shutil
import statistics as means
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from know.candidates import Candidate, candidates_of, given_beside, weights_of
from know.errors import KnowError, as_path, number
from know.export import Request, predict_files, refuse_inside
from know.files import PACKAGE, resumable_folder, write_csv, write_text
from know.identity import identity
from know.keras import LENGTH
from know.methods import get
from know.prediction import Overflow
from know.rates import choose_rates
from know.scripts import function_of
from know.statistics import paired_t
from know.tasks import Task, check_signature, outcomes_of, results_in, runner
from know.trajectory import Trajectory
from know.verdict import POLICIES, THETA_0, Row, verdict

COLUMNS = ["stage", "candidate", "learning_rate", "seed", "status", "validation", "test", "error"]
TEMPLATE = PACKAGE / "comparison.md.j2"


def compare(
    trajectory: Trajectory,
    task: Task | str,
    rates: Sequence[float],
    *,
    out: Path | str,
    seeds: int = 4,
    pilots: int = 2,
    methods: Sequence[str] = (),
    beside: Mapping[str, Path | str] | None = None,
    roles: Mapping[str, str] | None = None,
    jobs: int = 1,
    keep: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Compare theta_0 with predictions on a task, and write tables, a figure and a verdict to `out`.

    task: `fine_tune(checkpoint: Path, learning_rate: float, seed: int) -> float | tuple[float, float]`, the validation
        score, or validation and test score, the higher the better; or "SCRIPT.py:function". A run that raises or
        answers no finite number is lost, and shown.
    rates: learning rates to try for every candidate, the one of today first. The rate of a candidate may lie between
        two of them, where the curve through its best rate and the neighbours is best (`know.rates`).
    seeds, pilots: how many seeds are evaluated, and on how many others the rates are chosen.
    methods: further candidates, as NAME or NAME:depth. KNOWN at depth 1 and 3, and shrink matched to the latter, are
        candidates of every trajectory with as many snapshots as the network that ships takes, and so is a reference
        `continuation` or `compute_matched` where there is one.
    beside: checkpoints of yours that take part, by name, such as theta_0 trained on for as long as the forgetting took,
        which costs as much as the prediction. They have theta_0's tensors. The task gets the path of one as it is if it
        is laid out as theta_0's checkpoint, and else that of a copy in that layout, so that it loads all of them alike.
    roles: roles of tensors by pattern, for all predictions, as in `know.predict`.
    jobs: processes, for a task from a script. keep: also write the weights of the prediction or control that gains most
        at tuned rates, to `out`/best, where one is seen to gain.
    say: gets a line about the work to come, and one about its duration.

    A prediction that overflows is left out, and that is said. An interrupted comparison goes on when it is called
    again. Raises KnowError for wrong arguments, for a task that returns something else than one number or two before
    it has returned a score, and for one that returns one number in some runs and two in others.
    """
    _demand_packages()
    if not isinstance(trajectory, Trajectory):
        raise KnowError(f"trajectory must be a Trajectory, as Trajectory.load gives it, got {trajectory!r}")
    if not isinstance(task, str) and not callable(task):
        raise KnowError(f'task must be a function or "SCRIPT.py:function", got a {type(task).__name__}')
    if not isinstance(methods, list | tuple) or not all(isinstance(name, str) for name in methods):
        raise KnowError(f"methods must be a list of names, got {methods!r}")
    if not isinstance(roles, Mapping | None):
        raise KnowError(f"roles must map patterns of names to roles, got a {type(roles).__name__}")
    rates, out = _check(rates), as_path("out", out)
    seeds = number("seeds", seeds, whole=True, least=2)
    pilots = number("pilots", pilots, whole=True, least=1)
    jobs = number("jobs", jobs, whole=True, least=1)
    if jobs > 1 and not isinstance(task, str):
        raise KnowError('several jobs need the task as "SCRIPT.py:function", since each process reads it anew')
    refuse_inside(trajectory, out)
    usual = ["known:1", "known:3", "shrink:3"]
    if (count := len(trajectory.paths)) != LENGTH and (methods or beside):
        say(f"KNOWN and shrink are left out: they ask a network of {LENGTH} snapshots, and this trajectory has {count}")
        usual = []
    candidates = [*candidates_of(trajectory, [*usual, *methods], roles or {})]
    yours = given_beside(trajectory, beside, {candidate.name for candidate in candidates})
    candidates += [Candidate(name, checkpoint=checkpoint.path) for name, checkpoint in yours.items()]
    function = function_of(task, "--task") if isinstance(task, str) else task
    check_signature(function)
    what, unknown = identity(function)
    described = {
        "rates": rates,
        "seeds": seeds,
        "pilots": pilots,
        "task": what,
        "candidates": [repr((candidate.name, candidate.request)) for candidate in candidates],
        "snapshots": [checkpoint.hashes for checkpoint in trajectory.checkpoints],
        "beside": {name: checkpoint.hashes for name, checkpoint in yours.items()},
        "key and strip": [trajectory.key, list(trajectory.strip)],
    }
    if out.exists():
        raise KnowError(f"{out} exists already; name a new folder")
    for request in (each.request for each in candidates if each.request):
        request.try_first(trajectory)  # before anything is made, so that a refused request leaves nothing behind
    with resumable_folder(out, described) as folder, results_in(folder) as results:
        if results.known and unknown:
            warnings.warn(
                f"{', '.join(unknown[:3])} of the task could not be compared with the first call", stacklevel=2
            )
        places, overflowed = {}, []
        for each in candidates:
            try:
                places[each.name] = weights_of(trajectory, each, yours.get(each.name), folder / "candidates")
            except Overflow as error:
                overflowed.append(each.name)
                say(f"{each.name} is left out: {error}")
        candidates = [each for each in candidates if each.name in places]
        for name, checkpoint in yours.items():
            for note in checkpoint.notes:
                say(f"note: {note}")
            if places[name] != checkpoint.path:
                say(f"{name}: the task gets a copy in the layout of {trajectory.paths[-1].name}")
        if not any(each.name != THETA_0 for each in candidates):
            raise KnowError(f"nothing is left to compare: {', '.join(overflowed)} overflowed")
        names = [candidate.name for candidate in candidates]
        most = len(names) * (len(rates) * pilots + 2 * seeds)
        say(f"{', '.join(names)}: at most {most} fine-tunes, {len(results.known)} of them done")
        bar = tqdm(total=most, initial=len(results.known), desc="fine-tunes", disable=None, leave=False)
        with bar, runner(task, function, jobs) as run:
            work = functools.partial(
                outcomes_of, results=results, run=run, places=places, bar=bar, say=say, most=most, jobs=jobs
            )
            rows = _protocol(candidates, rates, range(pilots), range(pilots, pilots + seeds), work)
        runs = sorted(results.known.values(), key=lambda run: [run[key] for key in COLUMNS[:4]])
        write_csv(folder / "runs.csv", runs, COLUMNS)
        _write_pages(folder, rows, runs, trajectory, {**described, "overflowed": overflowed})
        if keep:
            requests = {each.name: each.request for each in candidates if each.request}
            gains = [row for row in rows if row.policy == "tuned" and row.low > 0 and row.candidate in requests]
            if gains:
                best = max(gains, key=lambda row: row.difference).candidate
                if not (folder / "best").exists():  # an interrupted call may have made it
                    predict_files(trajectory, requests[best], folder / "best")
            say(
                f"kept: {best}"
                if gains
                else "nothing is kept, since neither a prediction nor a control is seen to gain"
            )
        shutil.rmtree(folder / "candidates", ignore_errors=True)
    (out / "results.jsonl").unlink()  # only now: if the folder could not be renamed, a further call goes on from it
    return rows


def _demand_packages() -> None:
    lacking = []
    for name in ("scipy", "matplotlib"):
        try:
            importlib.import_module(name)
        except ImportError:
            lacking.append(name)
    if lacking:
        raise KnowError(f"a comparison needs {' and '.join(lacking)}: pip install {' '.join(lacking)}")


def _check(rates: Sequence[float]) -> list[float]:
    """The rates, checked, with today's first."""
    try:
        values = [float(rate) for rate in rates]
    except (TypeError, ValueError) as error:
        raise KnowError(f"rates must be numbers, got {rates!r}") from error
    if not values or not all(math.isfinite(rate) and rate > 0 for rate in values):
        raise KnowError(f"rates must be numbers above 0, got {rates!r}")
    if len(set(values)) < max(2, len(values)):
        raise KnowError(
            "give at least 2 different rates, today's first; one rate for all tells nothing about the cause"
        )
    return values


def _protocol(
    candidates: Sequence[Candidate],
    rates: Sequence[float],
    pilots: range,
    seeds: range,
    work: Callable[..., Any],
) -> list[Row]:
    """Choose rates on the pilot seeds, then evaluate at today's rate and at the chosen ones.

    KnowError if no pilot run gave a score, or if some runs gave a test score and some none.
    """
    names, kind_of = [each.name for each in candidates], {each.name: each.kind for each in candidates}
    searched: dict[tuple[str, float, int], dict[str, Any]] = {}

    def cover(points: Sequence[float]) -> None:
        # seed by seed, so that what is interrupted and goes on with a changed task cannot favour a candidate
        searched.update(
            work("pilot", ((name, rate, seed) for seed, rate, name in itertools.product(pilots, points, names)))
        )

    def score(name: str, rate: float) -> tuple[float]:
        scores = [searched[name, rate, seed]["validation"] for seed in pilots]
        return (math.inf if None in scores else -means.fmean(scores),)

    _, chosen = choose_rates(names, sorted(rates), cover, score)
    if not any(run["status"] == "ok" for run in searched.values()):
        raise KnowError(f"no fine-tune gave a score; the first one ended with {next(iter(searched.values()))['error']}")
    rate_of = {"today": dict.fromkeys(names, rates[0]), "tuned": {name: each.rate for name, each in chosen.items()}}
    with_theta_0, more = [(name, THETA_0) for name in names if name != THETA_0], list(_beside(candidates))
    compared, count = {"today": with_theta_0, "tuned": [*with_theta_0, *more]}, len(with_theta_0) + len(more)
    rows = []
    keys = [(name, rate_of[p][name], seed) for seed, p, name in itertools.product(seeds, POLICIES, names)]
    found = work("evaluation", keys)
    if len({run["test"] is None for run in [*searched.values(), *found.values()] if run["status"] == "ok"}) > 1:
        raise KnowError("the task returned one value in some runs and two in others; let it always return the same")
    for policy in POLICIES:
        scores = {name: [_score(found[name, rate_of[policy][name], seed]) for seed in seeds] for name in names}
        gains = {
            (one, other): paired_t([a - b for a, b in zip(scores[one], scores[other], strict=True)], comparisons=count)
            for one, other in [(THETA_0, THETA_0), *compared[policy]]
        }
        for name in names:
            own, gain = [value for value in scores[name] if math.isfinite(value)], gains[name, THETA_0]
            lost = sum(run["status"] != "ok" for (one, _, _), run in searched.items() if one == name)
            searches = sum(one == name for one, _, _ in searched)
            # without any score in the search there is no best rate
            rate, edge = rate_of[policy][name], policy == "tuned" and chosen[name].on_edge and lost < searches
            mean = means.fmean(own) if own else math.nan
            beside = {b: interval for (a, b), interval in gains.items() if a == name and b != THETA_0}
            numbers = (gain.mean, gain.low, gain.high, gain.n, len(seeds) - len(own))
            same = len(own) > 1 and len(set(own)) == 1
            rows.append(Row(name, policy, rate, edge, mean, *numbers, kind_of[name], lost, same, beside))
    return rows


def _beside(candidates: Sequence[Candidate]) -> Iterator[tuple[str, str]]:
    """The differences at tuned rates that are not to theta_0: each prediction to each checkpoint that was given, and
    KNOWN to a control of its depth, which tells what of its gain is its own.
    """
    for one, other in itertools.product(candidates, candidates):
        yours = (one.kind, other.kind) == ("prediction", "yours")
        if yours or (one.kind == "prediction" and other.kind == "control" and _matched(one.request, other.request)):
            yield one.name, other.name


def _matched(prediction: Request, control: Request) -> bool:
    """Whether a control is made from the answer of that KNOWN at that depth."""
    deep = bool(get(prediction.method).depths and get(control.method).depths)
    return deep and prediction.depth == control.depth and control.checked_options().get("of") == prediction.method


def _score(run: Mapping[str, Any]) -> float:
    """The test score of a run, the validation score where there is no other, NaN where it was lost."""
    value = run["validation"] if run["test"] is None else run["test"]
    return math.nan if value is None else value


def _write_pages(
    folder: Path, rows: Sequence[Row], runs: Sequence[dict], trajectory: Trajectory, described: Mapping[str, Any]
) -> None:
    """README.md and the figure."""
    import jinja2  # comes with torch

    from know.drawing import draw_comparison

    draw_comparison(folder, rows)
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined)
    page = template.render(
        rows=rows,
        verdict=verdict(rows),
        lost=[run for run in runs if run["status"] != "ok"],
        given=list(dict.fromkeys(name for row in rows for name in row.beside)),
        snapshots=[path.name for path in trajectory.paths],
        tested=any(run["test"] is not None for run in runs),
        **{key: described[key] for key in ("rates", "seeds", "pilots", "overflowed")},
    )
    write_text(folder / "README.md", page + "\n")
