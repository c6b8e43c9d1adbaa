"""Does a prediction help on the user's own task? theta_0 and the candidates, each at today's rate and at its own best.

The protocol is that of the benchmark: one grid of learning rates for all candidates, each one's rate chosen on pilot
seeds by `know.rates`, then frozen, and differences to theta_0 paired over other seeds. Needs scipy and matplotlib.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import statistics as means
import threading
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from know.checkpoints import Checkpoint
from know.errors import KnowError, as_path, number
from know.export import Request, loads_alike, predict_files, write_copy, write_prediction
from know.files import PACKAGE, listing, new_folder, resumable_folder, write_csv, write_text
from know.formats import entries_with_tensors
from know.identity import identity
from know.keras import LENGTH
from know.layout import is_state
from know.methods import get
from know.prediction import Overflow, check_depth, predicted
from know.rates import choose_rates
from know.scripts import function_of
from know.statistics import paired_t
from know.trajectory import Trajectory
from know.verdict import POLICIES, THETA_0, Row, verdict

Task = Callable[[Path, float, int], Any]
"""fine_tune(checkpoint, learning_rate, seed): validation score, or validation and test score; higher is better."""
CONTINUATIONS = ("continuation", "compute_matched")
"""References of a trajectory folder that are further training of theta_0 on the same data."""
COLUMNS = ["stage", "candidate", "learning_rate", "seed", "status", "validation", "test", "error"]
TEMPLATE = PACKAGE / "comparison.md.j2"


@dataclass(frozen=True)
class Candidate:
    """Weights to compare: a prediction that is to be made, or a checkpoint that exists already."""

    name: str
    request: Request | None = None
    checkpoint: Path | None = None

    @property
    def kind(self) -> str:
        """What it is in a sentence: theta_0, prediction, control, or yours, a checkpoint that was given."""
        if self.request is None:
            return THETA_0 if self.name == THETA_0 else "yours"
        return "control" if get(self.request.method).group == "control" else "prediction"


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
    rates, out = _check(rates, seeds, pilots, jobs, task), as_path("out", out)
    usual = ["known:1", "known:3", "shrink:3"]
    if (count := len(trajectory.paths)) != LENGTH and (methods or beside):
        say(f"KNOWN and shrink are left out: they ask a network of {LENGTH} snapshots, and this trajectory has {count}")
        usual = []
    candidates = [*_candidates(trajectory, [*usual, *methods], roles or {})]
    yours = _given(trajectory, beside, {candidate.name for candidate in candidates})
    candidates += [Candidate(name, checkpoint=checkpoint.path) for name, checkpoint in yours.items()]
    function = function_of(task, "--task") if isinstance(task, str) else task
    _check_signature(function)
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
    with resumable_folder(out, described) as folder, _results_in(folder) as results:
        if results.known and unknown:
            warnings.warn(
                f"{', '.join(unknown[:3])} of the task could not be compared with the first call", stacklevel=2
            )
        places, overflowed = {}, []
        for each in candidates:
            try:
                places[each.name] = _weights(trajectory, each, yours.get(each.name), folder / "candidates")
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
        with bar, _runner(task, function, jobs) as run:
            work = functools.partial(
                _do, results=results, run=run, places=places, bar=bar, say=say, most=most, jobs=jobs
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
        (folder / "results.jsonl").unlink()
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


def _check_signature(function: Task) -> None:
    """KnowError if a function cannot be called as a task is."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # it does not say what it takes
        return
    try:
        signature.bind(Path(), 0.1, 0)
    except TypeError as error:
        raise KnowError(f"the task is called as fine_tune(checkpoint, learning_rate, seed): {error}") from error


def _check(rates: Sequence[float], seeds: int, pilots: int, jobs: int, task: Task | str) -> list[float]:
    """The rates, checked, with today's first."""
    number("seeds", seeds, whole=True, least=2)
    number("pilots", pilots, whole=True, least=1)
    if number("jobs", jobs, whole=True, least=1) > 1 and not isinstance(task, str):
        raise KnowError('several jobs need the task as "SCRIPT.py:function", since each process reads it anew')
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


def _candidates(trajectory: Trajectory, methods: Sequence[str], roles: Mapping[str, str]) -> Iterator[Candidate]:
    theta_0 = trajectory.checkpoints[-1].path
    yield Candidate(THETA_0, checkpoint=theta_0)
    seen = {THETA_0}
    for text in methods:
        request = Request.of(text, roles=tuple(roles.items()))
        check_depth(trajectory, request.depth)
        factor = (trajectory.fractions[-1] / trajectory.fractions[-2]) ** request.depth
        label = f"{request.method}_x{factor:.3g}" if get(request.method).depths else request.method
        if label not in seen:
            seen.add(label)
            yield Candidate(label, request)
    references = trajectory.manifest.get("references", {})
    for name in CONTINUATIONS:
        if name in references:
            trajectory.reference(name)  # compares its hash
            yield Candidate(name, checkpoint=theta_0.parent / references[name]["file"])


def _given(
    trajectory: Trajectory, beside: Mapping[str, Path | str] | None, taken: Container[str]
) -> dict[str, Checkpoint]:
    """The user's own checkpoints by name; KnowError if a name is taken or a checkpoint cannot be read."""
    if not isinstance(beside, Mapping | None):
        raise KnowError(f"beside must map names to checkpoints, got {beside!r}")
    made = {}
    for name, path in (beside or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise KnowError(f"beside: a name has letters, digits and . _ - only, got {name!r}")
        if name in taken:
            raise KnowError(f"beside: {name!r} is a candidate already; give your checkpoint another name")
        made[name] = _of_yours(trajectory, as_path("beside", path))
    return made


def _of_yours(trajectory: Trajectory, path: Path) -> Checkpoint:
    """A checkpoint under theta_0's names; KnowError if it cannot take theta_0's place."""
    theta_0 = trajectory.checkpoints[-1]
    given = _opened(path, theta_0.key, trajectory.strip)
    given.match_names(theta_0.meta)
    for name, tensor in theta_0.meta.items():
        own = given.meta.get(name, given.meta.get(theta_0.tied.get(name, name)))
        for what, wanted, has in (
            ("shape", tuple(tensor.shape), None if own is None else tuple(own.shape)),
            ("values", _kind(tensor), None if own is None else _kind(own)),
        ):
            if has != wanted:
                there = f"{path} lacks it" if has is None else f"{has} in {path}"
                raise KnowError(
                    f"beside: {path} cannot take theta_0's place: tensor {name!r} has {what} {wanted} in"
                    f" {theta_0.path}, and {there}"
                )
    if (odd := {**given.odd, **theta_0.odd}) and not loads_alike(given, theta_0):
        name, what = next(iter(odd.items()))
        raise KnowError(
            f"beside: {path} is laid out otherwise than {theta_0.path}, and {name!r} is {what}, which cannot be written"
            " in another layout; save your checkpoint as theta_0 is saved"
        )
    return given


def _kind(tensor: Tensor) -> str:
    """What kind of numbers a tensor has, whatever their precision."""
    return "floating-point" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _opened(path: Path, key: str | None, strip: Sequence[str]) -> Checkpoint:
    """A checkpoint with the weights at its top, in the same entry as theta_0, or in the only one that holds some."""
    try:
        return Checkpoint(path, strip=strip)
    except KnowError:
        if key:
            with contextlib.suppress(KnowError):
                return Checkpoint(path, key=key, strip=strip)
        inside = [name for name in entries_with_tensors(path) if not is_state(name)]
        if len(inside) == 1:
            return Checkpoint(path, key=inside[0], strip=strip)
        if inside:
            raise KnowError(
                f"beside: {path} holds weights in several entries ({', '.join(inside)}); save one of them alone"
            ) from None
        raise


def _weights(trajectory: Trajectory, candidate: Candidate, given: Checkpoint | None, folder: Path) -> Path:
    """The checkpoint of a candidate. What has to be made is made in `folder`, unless it is there.

    Where prefixes are stripped from names theta_0 is written anew too, since the task has to find all of them alike.
    given: the checkpoint, opened, where it is one of the user's.
    """
    request, theta_0 = candidate.request, trajectory.checkpoints[-1]
    if candidate.name == THETA_0 and theta_0.stripped:
        given = theta_0
    if request is None and (given is None or loads_alike(given, theta_0)):
        return candidate.checkpoint
    place = folder / candidate.name
    if not place.exists():
        if request:
            predicted(trajectory, dict(request.roles))  # most errors before anything is made
        with new_folder(place) as fresh:
            if request:
                write_prediction(trajectory, request, fresh)
            else:
                write_copy(given, theta_0, fresh)
    return place if theta_0.path.is_dir() else next(place.iterdir())


class _Results:
    """Results of fine-tunes in a file, one line each, written as they come."""

    def __init__(self, path: Path):
        self.path, self.known, self.added = path, {}, 0
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
            if line.endswith("\n"):  # else its process was killed while it wrote
                run = json.loads(line)
                if run["status"] == "ok":  # what failed is tried again, since its cause may be gone
                    self.known[run["candidate"], run["learning_rate"], run["seed"]] = run
        lines = "".join(json.dumps(run) + "\n" for run in self.known.values())
        write_text(path, lines)

    @property
    def any_score(self) -> bool:
        return any(run["status"] == "ok" for run in self.known.values())

    def add(self, run: dict[str, Any]) -> None:
        self.known[run["candidate"], run["learning_rate"], run["seed"]] = run
        self.added += 1
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")


@contextlib.contextmanager
def _results_in(folder: Path) -> Iterator[_Results]:
    """The results that are kept in a folder. Without a score a failing block leaves it empty, for a mended call."""
    results = _Results(folder / "results.jsonl")
    try:
        yield results
    except KnowError:
        if not results.any_score:
            results.path.unlink()
            shutil.rmtree(folder / "candidates", ignore_errors=True)
        raise


def _do(
    stage: str,
    asked: Iterable[tuple[str, float, int]],
    *,
    results: _Results,
    run: Callable[..., Iterator[tuple[tuple[str, float, int], dict[str, Any]]]],
    places: Mapping[str, Path],
    bar: tqdm,
    say: Callable[[str], None],
    most: int,
    jobs: int,
) -> dict[tuple[str, float, int], dict[str, Any]]:
    """Results of these fine-tunes, of which those that are not known yet are done."""
    wanted = list(dict.fromkeys(asked))
    undone = [key for key in wanted if key not in results.known]
    begun = time.monotonic()
    for (name, rate, seed), outcome in run([(key, places[key[0]]) for key in undone]):
        if outcome["error"].startswith(RETURNS) and not results.any_score:
            raise KnowError(outcome["error"])  # it never returned a score, and every further run would be lost too
        results.add({"stage": stage, "candidate": name, "learning_rate": rate, "seed": seed, **outcome})
        if outcome["error"]:
            tqdm.write(f"{name} at rate {rate:g}, seed {seed}: {outcome['error']}")
        bar.update(1)
        if results.added == 1:
            took = time.monotonic() - begun
            left = took * (most - bar.n) / (60 * jobs)
            say(f"the first took {took:.3g} s: about {left:.2g} minutes are left at that pace")
    return {key: results.known[key] for key in wanted}


@contextlib.contextmanager
def _runner(task: Task | str, function: Task, jobs: int) -> Iterator[Callable[..., Iterator[tuple[Any, dict]]]]:
    """Runs fine-tunes in this process or in several; yields (key, outcome) as they end."""
    if jobs == 1:
        yield lambda asked: ((key, _outcome(function, place, *key[1:])) for key, place in asked)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_worker, (task, threads))
    try:
        yield functools.partial(_in_pool, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_pool(
    pool: ProcessPoolExecutor, asked: Sequence[tuple[tuple[str, float, int], Path]]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    waiting = {pool.submit(_in_worker, place, *key[1:]): key for key, place in asked}
    for future in as_completed(waiting):
        try:
            yield waiting[future], future.result()
        except BrokenProcessPool as error:
            message = "a process of the comparison died, perhaps for lack of memory; the same call goes on"
            raise KnowError(message) from error


_worker: dict[str, Task] = {}
"""The task of a worker process, read once when it begins."""


def _begin_worker(task: str, threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker["task"] = function_of(task, "--task")


def _end_with_parent() -> None:
    """End this process when its parent ends. A killed comparison cannot stop its workers, which would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _in_worker(place: Path, rate: float, seed: int) -> dict[str, Any]:
    return _outcome(_worker["task"], place, rate, seed)


def _outcome(function: Task, place: Path, rate: float, seed: int) -> dict[str, Any]:
    """What one fine-tune gave: status, validation and test score, and the error of a lost one."""
    lost, before, wrong = {"status": "failed", "validation": None, "test": None}, listing(place), ""
    try:
        with contextlib.chdir(Path.cwd()):  # what the task enters it may not leave, and paths go on to mean the same
            values = _scores(function(place, rate, seed))
    except KnowError as error:
        wrong = str(error)
    except (Exception, SystemExit) as error:  # the user's own function: whatever it raises costs this run alone
        wrong = " ".join(f"{type(error).__name__}: {error}".split())[:400]  # torch names the tensors on later lines
    if listing(place) != before:
        raise KnowError(f"the task changed {place}, which it should only read; make the trajectory or --out anew")
    if wrong:
        return {**lost, "error": wrong}
    if not all(map(math.isfinite, values)):
        return {**lost, "error": f"the score is {values[0]:g}" + (f", {values[1]:g}" if len(values) > 1 else "")}
    return {"status": "ok", "validation": values[0], "test": values[1] if len(values) > 1 else None, "error": ""}


RETURNS = "the task must return one number, or two (validation and test score)"


def _scores(answer: Any) -> list[float]:
    """The validation score, or validation and test score; KnowError for anything else that a task returned."""
    several = isinstance(answer, tuple | list)
    values = list(answer) if several else [answer]
    shown = ", ".join(type(value).__name__ for value in values[:5])
    wrong = KnowError(f"{RETURNS}; it returned {f'({shown})' if several else shown}")
    if len(values) not in (1, 2) or any(isinstance(each, Tensor) and each.numel() != 1 for each in values):
        raise wrong
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong from error


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
