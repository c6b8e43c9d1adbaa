"""Downstream evaluation: every arm through the same fine-tuning function and the same learning-rate search.

Paired by construction: subset, head initialisation, batch order and augmentation come from streams in which neither arm
nor learning rate nor recipe appears (`know.seeds`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from know import predictors
from know.data import Dataset, Split, load
from know.errors import KnowError
from know.files import code_hash, digest, resumable_folder, sha256_file, write_json, write_text
from know.known import Known
from know.nets import build, head_name
from know.records import PilotRecord, RunRecord, write_records
from know.seeds import stream
from know.suite import Arms, Cell, Transfer
from know.training import accuracy, logits, train
from know.trajectory import PREDICTED, State, Trajectory, roles


@dataclass(frozen=True)
class Arm:
    """One way to get the weights that are fine-tuned."""

    name: str
    predictor: str = ""
    depth: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def weights(self, trajectory: Trajectory, known: Known, seed: int) -> State:
        """Its weights for one trajectory. naive: theta_0; oracle and scratch: kept with the trajectory."""
        if self.predictor:
            own = stream(seed, "arm", self.name)
            return predictors.predict(trajectory, self.predictor, self.depth, known=known, seed=own, **self.options)
        return trajectory.theta_0 if self.name == "naive" else trajectory.reference(self.name)


def arms_of(settings: Arms, rate: float, track: str) -> list[Arm]:
    """The arms of a suite: references first, then predictors by name and depth, as `known_x8` (r^-depth = 8).

    On the retrodiction track theta_{-1} is the only oracle, so `oracle_steps` exists on the overflow track alone.
    """
    arms = [Arm(name) for name in settings.references if track == "overflow" or name != "oracle_steps"]
    chosen = settings.predictors
    for name in predictors.names() if chosen == "all" else chosen:
        found = predictors.get(name)
        own = None if chosen == "all" else chosen[name]
        options = found.check_options(own.options if own else {})
        for depth in (own.depths if own else None) or found.depths:
            arms.append(Arm(f"{name}_x{rate**-depth:.2g}", name, depth, options))
    return arms


@dataclass(frozen=True)
class Result:
    """What one fine-tune gives. `accuracy` is None where the test set was not to be read (pilots)."""

    status: str
    validation_accuracy: float
    validation_loss: float | None
    accuracy: float | None


def fine_tune(
    weights: State,
    network: str,
    target: Dataset,
    settings: Transfer,
    *,
    share: float,
    learning_rate: float,
    seed: int,
    test: bool,
) -> Result:
    """THE fine-tuning function: new head, the suite's recipe, accuracy after the last epoch.

    seed: of (source trajectory, target, fine-tune); decides the target subset, the validation images and the head.
        Batch order and augmentation also depend on the share.
    test: whether to read the test set.
    """
    device = target.mean.device
    images, validation = target_split(target, settings, share, seed)
    model = build(network, target.shape, len(target.classes), seed=stream(seed, "head"))
    head = head_name(model) + "."
    carried = {name: tensor for name, tensor in weights.items() if not name.startswith(head)}
    missing, unexpected = model.load_state_dict(carried, strict=False)
    if unexpected or any(not name.startswith(head) for name in missing):
        raise KnowError(f"weights do not fit {network}: missing {missing}, unexpected {unexpected}")
    model.to(device)
    order = stream(seed, "share", share)
    outcome = train(model, target, images, settings.recipe, seed=order, learning_rate=learning_rate)
    scores = logits(model, target, validation)
    loss = float(F.cross_entropy(scores, validation.labels))
    return Result(
        status=outcome.status,
        validation_accuracy=round(accuracy(model, target, validation), 6),
        validation_loss=round(loss, 6) if math.isfinite(loss) else None,
        accuracy=round(accuracy(model, target, target.test), 6) if test else None,
    )


def target_split(target: Dataset, settings: Transfer, share: float, seed: int) -> tuple[Split, Split]:
    """Training and validation images, disjoint; a smaller share is a prefix of a larger one."""
    total, wanted = len(target.train), settings.images + settings.validation
    if wanted > total:
        raise KnowError(f"{target.name} has {total} training images, transfer.images + validation is {wanted}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(stream(seed, "subset")))
    return target.train.take(order[: round(share * settings.images)]), target.train.take(order[-settings.validation :])


Evaluate = Callable[[str, Arm, int, float], Result]
"""(trajectory, arm, fine-tune, learning rate) -> Result"""


def choose_rates(
    arms: list[Arm], pilots: list[str], settings: Transfer, evaluate: Evaluate
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The learning-rate protocol: one grid for all arms, the best mean validation accuracy over the pilots, frozen.

    While some arm's best rate lies on an edge, the grid grows by one point there, for ALL arms, up to
    `settings.extensions` points. Ties go to the lower validation loss, then to the lower rate.

    Returns the choice (grid, and per arm rate and whether it is still on an edge) and all pilot runs (see PilotRecord).
    """
    grid, runs = list(settings.grid), {}

    def cover(rates: list[float]) -> None:
        repeats = range(settings.fine_tunes)
        for trajectory, arm, rate, repeat in itertools.product(pilots, arms, rates, repeats):
            runs[trajectory, arm.name, repeat, rate] = evaluate(trajectory, arm, repeat, rate)

    def best(arm: Arm) -> float:
        def score(rate: float) -> tuple[float, float, float]:
            found = [run for key, run in runs.items() if key[1] == arm.name and key[3] == rate]
            losses = [math.inf if run.validation_loss is None else run.validation_loss for run in found]
            return -sum(run.validation_accuracy for run in found) / len(found), sum(losses) / len(found), rate

        return min(grid, key=score)

    cover(grid)
    for _ in range(settings.extensions):
        rates = {best(arm) for arm in arms}
        if grid[-1] in rates:
            grid.append(2 * grid[-1])
            cover(grid[-1:])
        elif grid[0] in rates:
            grid.insert(0, grid[0] / 2)
            cover(grid[:1])
        else:
            break
    chosen = {arm.name: best(arm) for arm in arms}
    choice = {
        "grid": grid,
        "pilots": pilots,
        "rule": "highest mean validation accuracy over the pilots, then lowest validation loss, then lowest rate",
        "arms": {name: {"learning_rate": r, "on_edge": r in (grid[0], grid[-1])} for name, r in chosen.items()},
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
    rate: float,
    out: Path,
    device: str = "cpu",
) -> None:
    """Search on the pilots (p0, ...), freeze, evaluate on the others (t0, ...): `<out>/{pilots,runs}.csv`, choice.json.

    origin: folder that `know.forgetting.make_origin` made. known: file of the KNOWN that predictors ask. rate: r, for
    the names of the arms. Resumable: finished fine-tunes are kept in a journal while the cell is unfinished.
    """
    target, source = load(cell.target, device=device), load(cell.source, device=device)
    target_split(target, settings, cell.share, 0)  # too few images: say so before training
    chosen, hyper = arms_of(arms, rate, cell.track), Known.load(known)
    pilots = [t for t in trajectories if t.startswith("p")]
    seeds = {t: Trajectory.load(origin / t / cell.track).manifest["source_seed"] for t in trajectories}
    code = code_hash(__name__)
    described = [cell.slug, trajectories, settings.model_dump(), arms.model_dump(), rate, code, torch.__version__]
    inputs = [target.sha256, source.sha256, sha256_file(known), sha256_file(origin / "manifest.json")]

    # one trajectory and the weights of one arm in memory at a time
    @functools.lru_cache(maxsize=1)
    def trajectory_of(trajectory: str) -> Trajectory:
        return Trajectory.load(origin / trajectory / cell.track)

    @functools.lru_cache(maxsize=1)
    def weights_of(trajectory: str, arm: str) -> State:
        found = next(a for a in chosen if a.name == arm)
        return found.weights(trajectory_of(trajectory), hyper, seeds[trajectory])

    # without the points that the grid may grow by
    total = len(chosen) * settings.fine_tunes * (len(settings.grid) * len(pilots) + 2 * len(seeds) - 2 * len(pilots))
    bar = tqdm(desc=cell.slug, total=total, disable=None)
    with bar, resumable_folder(out, digest([described, inputs])) as folder:
        journal = Journal(folder / "journal.jsonl")

        def evaluate(trajectory: str, arm: Arm, repeat: int, learning_rate: float) -> Result:
            key = f"{trajectory} {arm.name} {repeat} {learning_rate:.6g}"
            if key not in journal.results:
                result = fine_tune(
                    weights_of(trajectory, arm.name),
                    cell.network,
                    target,
                    settings,
                    share=cell.share,
                    learning_rate=learning_rate,
                    seed=stream(seeds[trajectory], "target", cell.target, repeat),
                    test=trajectory not in pilots,
                )
                journal.add(key, result)
            bar.update()
            return journal.results[key]

        choice, searched = choose_rates(chosen, pilots, settings, evaluate)
        write_json(folder / "choice.json", choice)
        write_records(folder / "pilots.csv", (PilotRecord(cell=cell.slug, **run) for run in searched), PilotRecord)
        records = []
        for trajectory, arm in itertools.product((t for t in trajectories if t not in pilots), chosen):
            facts = describe(weights_of(trajectory, arm.name), trajectory_of(trajectory), source, cell)
            for recipe, repeat in itertools.product(("published", "tuned"), range(settings.fine_tunes)):
                tuned = choice["arms"][arm.name] if recipe == "tuned" else {}
                learning_rate = tuned.get("learning_rate", settings.recipe.learning_rate)
                result = evaluate(trajectory, arm, repeat, learning_rate)
                record = RunRecord(
                    cell=cell.slug,
                    **dataclasses.asdict(cell),
                    trajectory=trajectory,
                    arm=arm.name,
                    predictor=arm.predictor,
                    depth=arm.depth,
                    recipe=recipe,
                    fine_tune=repeat,
                    learning_rate=learning_rate,
                    on_edge=tuned.get("on_edge", False),
                    status=result.status,
                    accuracy=result.accuracy,
                    validation_accuracy=result.validation_accuracy,
                    **facts,
                    source_seed=seeds[trajectory],
                    target_seed=stream(seeds[trajectory], "target", cell.target, repeat),
                    source_data=source.sha256,
                    target_data=target.sha256,
                    code=code,
                )
                records.append(record)
        write_records(folder / "runs.csv", records, RunRecord)
        journal.path.unlink()


def describe(weights: State, trajectory: Trajectory, source: Dataset, cell: Cell) -> dict[str, float | None]:
    """What can be said of an arm's weights before any fine-tuning (see `RunRecord`)."""
    theta_0 = trajectory.theta_0
    names = [name for name, role in roles(theta_0).items() if role in PREDICTED]

    def distance(a: State, b: State | None = None) -> float:
        squares = [(a[n].double() - (b[n].double() if b else 0)).square().sum() for n in names]
        return float(torch.stack(squares).sum().sqrt())

    error = None
    if cell.track == "retrodiction":
        truth = trajectory.reference("oracle")
        error = float(f"{distance(weights, truth) / distance(theta_0, truth):.6g}")
    model = build(cell.network, source.shape, len(source.classes))
    model.load_state_dict(weights)
    return {
        "source_accuracy": round(accuracy(model.to(source.mean.device), source, source.test), 6),
        "step": float(f"{distance(weights, theta_0) / distance(theta_0):.6g}"),
        "weight_error": error,
    }


class Journal:
    """Finished fine-tunes of an unfinished cell, one JSON line each; a line cut short by a kill is ignored."""

    def __init__(self, path: Path):
        self.path, self.results = path, {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole:
            entry = json.loads(line)
            key = entry.pop("key")
            self.results[key] = Result(**entry)
        if whole != lines:
            write_text(path, "".join(whole))

    def add(self, key: str, result: Result) -> None:
        self.results[key] = result
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"key": key, **vars(result)}) + "\n")
