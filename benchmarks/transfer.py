"""Downstream evaluation: every arm uses the same fine-tuning function and the same learning-rate search.

Comparisons are paired: subset, head initialisation, batch order and augmentation come from seeds that depend neither on
the arm nor on the learning rate nor on the rate policy (`know.seeds`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.arms import Arm, arms_of
from benchmarks.data import load
from benchmarks.finetune import FineTune, FineTuner, Result, fine_tune_stacked, source_accuracy, target_split
from benchmarks.progress import progress
from benchmarks.records import PilotRecord, RunRecord, write_records
from benchmarks.settings import Arms, Cell, Policy, Transfer
from benchmarks.store import LOADING, Store, computing
from benchmarks.workers import workers
from know import keras as released
from know.checkpoints import State
from know.errors import KnowError
from know.files import digest, resumable_folder, sha256_file, write_json
from know.fingerprint import code_hash
from know.known import Models
from know.prediction import Overflow
from know.rates import choose_rates as choose
from know.roles import only_predicted, roles
from know.seeds import stream
from know.trajectory import Trajectory

ENTRY = "benchmarks.transfer:run_cell"
"""The function from which the fingerprint of a cell's code is made."""


class Task(NamedTuple):
    """One fine-tune. fine_tune: its number among those of the trajectory."""

    trajectory: str
    arm: Arm
    fine_tune: int
    learning_rate: float
    policy: Policy = "tuned"


Evaluate = Callable[[list[Task]], list[Result]]


def choose_rates(
    arms: list[Arm], pilots: list[str], settings: Transfer, evaluate: Evaluate
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Choose each arm's learning rate by `know.rates`: near the point of one grid with the best mean validation
    accuracy over the pilots, where the curve through that point and its neighbours is highest.

    While some arm's best point lies on an edge, the grid grows by one point there, for ALL arms, up to
    `settings.extensions` points. In a tie the lower validation loss decides, then the lower rate.

    Returns the choice (grid; each arm's rate, its best point, and whether that is still on an edge) and all pilot runs
    (PilotRecord).
    """
    runs: dict[tuple, Result] = {}

    def cover(points: list[float]) -> None:
        repeats = range(settings.pilot_fine_tunes)
        tasks = [Task(t, arm, f, rate) for t, arm, rate, f in itertools.product(pilots, arms, points, repeats)]
        for task, run in zip(tasks, evaluate(tasks), strict=True):
            runs[task.trajectory, task.arm.name, task.fine_tune, task.learning_rate] = run

    def score(name: str, rate: float) -> tuple[float, float]:
        at_rate = [run for key, run in runs.items() if key[1] == name and key[3] == rate]
        losses = [math.inf if run.validation_loss is None else run.validation_loss for run in at_rate]
        return -sum(run.validation_accuracy for run in at_rate) / len(at_rate), sum(losses) / len(at_rate)

    grid, chosen = choose([arm.name for arm in arms], settings.grid, cover, score, extensions=settings.extensions)
    choice = {
        "grid": grid,
        "pilots": pilots,
        "rule": "point: highest mean validation accuracy over the pilots, then lowest validation loss, then lowest "
        "rate; learning_rate: the top of the curve through that point and its neighbours (know/rates.py)",
        "arms": {
            name: {"learning_rate": each.rate, "point": each.point, "on_edge": each.on_edge}
            for name, each in chosen.items()
        },
    }
    columns = ("trajectory", "arm", "fine_tune", "learning_rate")
    outcome = ("status", "validation_accuracy", "validation_loss")
    rows = [
        {**dict(zip(columns, key, strict=True)), **{name: getattr(run, name) for name in outcome}}
        for key, run in runs.items()
    ]
    return choice, rows


def run_cell(
    cell: Cell,
    trajectories: list[str],
    settings: Transfer,
    arms: Arms,
    *,
    origin: Path,
    known: Path,
    store: Store,
    out: Path,
    device: str = "cpu",
    processes: int = 1,
) -> None:
    """Choose rates on the pilots (p0, ...), evaluate on the others (t0, ...): `<out>/{pilots,runs}.csv`, choice.json.

    origin: folder made by `benchmarks.trajectories.make_origin`. known: folder of the networks that methods use.
    store: holds finished fine-tunes; they are not computed again after a cell was killed or an arm added.
    processes: how many share the work; the result is the same.
    """
    every = arms_of(arms, cell, settings.normalisation)
    chosen = [arm for arm in every if not arm.missing]
    pilots = [t for t in trajectories if t.startswith("p")]
    evaluated = [t for t in trajectories if t not in pilots]
    code = code_hash(ENTRY)
    bench = Bench(cell, settings, origin, known, store, device)
    _worker.cache_clear()  # this process may have read the store before
    here = _worker(bench)
    target_split(here.target, settings, cell.share, 0)  # raises before any training if there are too few images
    seeds = {t: here.trajectory(t).manifest["source_seed"] for t in trajectories}
    described = [cell.slug, trajectories, settings.model_dump(), arms.model_dump(), computing(code, device)]
    inputs = [here.target.sha256, here.source.sha256, released.hashes()]
    inputs += [sha256_file(path) for path in [*sorted(Path(known).glob("*.safetensors")), origin / "manifest.json"]]
    anywhere = {arm.name for arm in arms_of(arms, dataclasses.replace(cell, track="overflow"))}
    if lacking := sorted(set(settings.paper.arms if settings.paper else ()) - anywhere):
        raise KnowError(f"transfer.paper.arms: there is no arm {', '.join(lacking)} among those of the suite")
    rows = [
        (trajectory, arm, policy, repeat)
        for trajectory, arm in itertools.product(evaluated, chosen)
        for policy, repeat in itertools.product(settings.policies(arm.name), range(settings.fine_tunes))
    ]
    # this total leaves out the points by which the grid may grow
    total = len(chosen) * settings.pilot_fine_tunes * len(settings.grid) * len(pilots) + len(rows)
    bar = progress(desc=cell.slug, total=total, unit="run")
    with bar, workers(processes) as each, resumable_folder(out, digest([described, inputs]), replace=True) as folder:
        facts: dict[tuple[str, str], dict] = {}

        def evaluate(tasks: list[Task]) -> list[Result]:
            results = []
            for portion, about in each(functools.partial(run_tasks, bench), portions(tasks, settings.together)):
                results += portion
                facts.update(about)
                bar.update(len(portion))
            return results

        choice, searched = choose_rates(chosen, pilots, settings, evaluate)
        about = ("name", "summary", "reference", "group", "predictor", "depth", "options", "normalisation", "missing")
        choice["described"] = [{key: getattr(arm, key) for key in about} for arm in every]
        write_json(folder / "choice.json", choice)
        write_records(folder / "pilots.csv", (PilotRecord(cell=cell.slug, **run) for run in searched), PilotRecord)

        def rate(policy: str, arm: Arm) -> float:
            tuned = choice["arms"][arm.name]["learning_rate"]
            return tuned if policy == "tuned" else settings.recipe.learning_rate

        tasks = [Task(trajectory, arm, repeat, rate(policy, arm), policy) for trajectory, arm, policy, repeat in rows]
        results = evaluate(tasks)
        records = [
            RunRecord(
                cell=cell.slug,
                **{"rate" if name == "ratio" else name: value for name, value in dataclasses.asdict(cell).items()},
                trajectory=trajectory,
                arm=arm.name,
                predictor=arm.predictor,
                depth=arm.depth,
                policy=policy,
                fine_tune=repeat,
                learning_rate=rate(policy, arm),
                on_edge=policy == "tuned" and choice["arms"][arm.name]["on_edge"],
                status=result.status,
                accuracy=result.accuracy,
                **facts[trajectory, arm.name],
                source_seed=seeds[trajectory],
                target_seed=stream(seeds[trajectory], "target", cell.target, repeat),
                source_data=here.source.sha256,
                target_data=here.target.sha256,
                code=code,
            )
            for (trajectory, arm, policy, repeat), result in zip(rows, results, strict=True)
        ]
        write_records(folder / "runs.csv", records, RunRecord)


@dataclass(frozen=True)
class Bench:
    """Everything that the fine-tunes of a cell need; see `run_cell`."""

    cell: Cell
    settings: Transfer = field(hash=False)
    origin: Path
    known: Path
    store: Store = field(hash=False)
    device: str


class _Worker:
    """What one process holds while it works on a cell: data, models, and one trajectory."""

    def __init__(self, bench: Bench):
        self.bench, cell = bench, bench.cell
        self.target, self.source = (load(name, device=bench.device) for name in (cell.target, cell.source))
        place = {"source": cell.source, "network": cell.network, "target": cell.target}
        made = computing(code_hash("benchmarks.finetune", LOADING), bench.device)
        self.models, self.kept = Models(bench.known), bench.store.results("fine-tunes", {**place, **made})
        self.trajectory = functools.lru_cache(maxsize=1)(self._trajectory)
        self.tuner = functools.cache(self._tuner)

    def run(self, tasks: list[Task]) -> tuple[list[Result], dict[tuple[str, str], dict[str, Any]]]:
        """Results of fine-tuning, or from the store, for some arms on some trajectories. Returned beside them, by
        trajectory and arm: what a record says of the weights before fine-tuning (not for pilots).
        """
        facts, lost = {}, {False: Result("diverged", 0.0, None, None), True: Result("diverged", None, None, 0.0)}
        prepared: list[tuple[FineTune, list[Any]] | None] = []  # with its key in the store; None: weights overflowed
        for (trajectory, _), group in _by_start(tasks):
            about, fine_tunes = self._prepare(group)
            prepared += fine_tunes
            if not trajectory.startswith("p"):
                facts[trajectory, group[0][1].name] = about
        results: dict[int, Result] = {}
        together = self.bench.settings.together > 1
        made = [(place, task.policy == "paper") for place, task in enumerate(tasks) if prepared[place]]
        # a portion is computed as a whole, since the rounding of a stacked fine-tune may depend on its neighbours
        groups = [[place] for place, _ in made]
        if together:
            groups = [[place for place, own in made if own == longer] for longer in (False, True)]
        for portion in filter(None, groups):
            found = self._results([prepared[place] for place in portion], tasks[portion[0]].policy, stacked=together)
            results |= dict(zip(portion, found, strict=True))
        return [
            results.get(place) or lost[not task.trajectory.startswith("p")] for place, task in enumerate(tasks)
        ], facts

    def _prepare(self, tasks: list[Task]) -> tuple[dict[str, Any], list[tuple[FineTune, list[Any]] | None]]:
        """For one arm on one trajectory: what its record says, and each fine-tune with its key in the store."""
        (trajectory, arm, *_), cell = tasks[0], self.bench.cell
        seen, pilot = self.trajectory(trajectory), trajectory.startswith("p")
        source_seed = seen.manifest["source_seed"]
        try:
            start = arm.start(seen, self.models, source_seed)
        except Overflow:
            nothing = {"step": None, "weight_error": None, "source_accuracy": 0.0, "source_accuracy_recalibrated": 0.0}
            return nothing, [None] * len(tasks)
        fingerprint, stacked = start.fingerprint(), self.bench.settings.together > 1
        prepared = []
        for task in tasks:
            seed = stream(source_seed, "target", cell.target, task.fine_tune)
            facts = {"share": cell.share, "learning_rate": task.learning_rate, "seed": seed, "test": not pilot}
            how = self.bench.settings.at(task.policy).model_dump(include={"recipe", "images", "validation"})
            key = [fingerprint, cell.network, self.target.sha256, cell.share, how, facts, stacked]
            prepared.append((FineTune(start, **facts), key))
        if pilot:
            return {}, prepared
        accuracies = self.kept.get(
            ["source", fingerprint, cell.network, self.source.sha256],
            lambda: source_accuracy(start.weights, cell.network, self.source),
        )
        return describe(start.weights, seen, cell.track) | accuracies, prepared

    def _results(self, portion: list[tuple[FineTune, list[Any]]], policy: Policy, *, stacked: bool) -> list[Result]:
        """Results, from the store or computed, of one fine-tune or of many stacked ones (equal ones only once)."""
        settings = self.bench.settings.at(policy)
        unique = {digest(key): (request, key) for request, key in portion}
        requests, keys = (list(part) for part in zip(*unique.values(), strict=True))
        if stacked:  # what a fine-tune gives may depend on its neighbours
            keys = [[*key, sorted(unique)] for key in keys]

        def compute() -> list[dict[str, Any]]:
            if stacked:
                made = fine_tune_stacked(requests, self.bench.cell.network, self.target, settings)
            else:
                made = [self.tuner(longer=policy == "paper")(requests[0])]
            return [vars(one) for one in made]

        kept = dict(zip(unique, self.kept.get_all(keys, compute), strict=True))
        return [Result(**kept[digest(key)]) for _, key in portion]

    def _tuner(self, *, longer: bool) -> FineTuner:
        settings = self.bench.settings.at("paper" if longer else "tuned")
        return FineTuner(self.bench.cell.network, self.target, settings)

    def _trajectory(self, trajectory: str) -> Trajectory:
        cell = self.bench.cell
        return Trajectory.load(self.bench.origin / trajectory / cell.track).last(cell.length)


def _by_start(tasks: list[Task]) -> Iterator[tuple[tuple[str, str], list[Task]]]:
    """Consecutive tasks with the same initial weights (one arm, one trajectory), which need only one prediction."""
    for key, group in itertools.groupby(tasks, lambda task: (task.trajectory, task.arm.name)):
        yield key, list(group)


def portions(tasks: list[Task], together: int) -> list[list[Task]]:
    """Portions for one process at a time: tasks with the same start stay together, at least `together` per portion."""
    made: list[list[Task]] = []
    for _, group in _by_start(tasks):
        if made and len(made[-1]) < together:
            made[-1] += group
        else:
            made.append(group)
    return made


_worker = functools.lru_cache(maxsize=1)(_Worker)


def run_tasks(bench: Bench, tasks: list[Task]) -> tuple[list[Result], dict[tuple[str, str], dict[str, Any]]]:
    return _worker(bench).run(tasks)


def describe(weights: State, trajectory: Trajectory, track: str) -> dict[str, float | None]:
    """Distance of an arm's weights from theta_0 and, where it exists, from the truth (see `RunRecord`)."""
    theta_0 = trajectory.theta_0
    names = list(only_predicted(roles(theta_0)))

    def distance(a: State, b: State | None = None) -> float:
        squares = [(a[n].double() - (b[n].double() if b else 0)).square().sum() for n in names]
        return float(torch.stack(squares).sum().sqrt())

    error = None
    if track == "retrodiction":
        truth = trajectory.reference("oracle")
        error = float(f"{distance(weights, truth) / distance(theta_0, truth):.6g}")
    return {"step": float(f"{distance(weights, theta_0) / distance(theta_0):.6g}"), "weight_error": error}
