"""What else the compute of a forgetting trajectory can buy: attempts, judged on trajectories that no table uses.

    KNOW_DATA=... python -m benchmarks explore --network resnet8       adds to the tables in results/explored/

Every attempt begins at theta_0 of one source trajectory (e0, e1, ..., with the settings of core/plaincnn, or of another
suite, whose tables lie in results/explored/SUITE/) and may show networks as many source images as its budget has: those
of the four forgetting steps, or a multiple of those that made theta_0. Labels and choices on held-out images are
counted like images in training. Each attempt is judged by source test accuracy with running statistics measured anew,
and then, with --transfer, by fine-tuning on the target at tuned rates, where validation images alone are read. At most
three go into the suites. Intervals are not corrected for the number of attempts, so these tables prove nothing; they
say what is worth a confirmation.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from benchmarks.data import Split, load
from benchmarks.finetune import FineTune, FineTuner, Start
from benchmarks.networks import has_running_statistics, weights_of
from benchmarks.progress import progress
from benchmarks.report.explored import BUDGETS, SCALED, SUITE
from benchmarks.settings import Origin
from benchmarks.store import LOADING, Store, computing
from benchmarks.suite import load_suite
from benchmarks.training import correct, evaluated, logits, recalibrate, show, steps_per_epoch, train
from benchmarks.trajectories import SourceRun, make_origin, source_run
from benchmarks.workers import workers
from know import keras
from know.checkpoints import State, load_facts, load_state, save_state
from know.errors import KnowError, unknown
from know.files import PRETRAINED, digest, sha256_file, write_csv
from know.fingerprint import code_hash
from know.prediction import predict
from know.roles import only_predicted, roles
from know.seeds import stream
from know.trajectory import Trajectory

FINE_TUNES = 2
KEYS = ["network", "budget", "attempt", "trajectory", "theta_0"]
COLUMNS = [*KEYS, "images", "source_accuracy", "source_loss"]
TRANSFERRED = [*KEYS, "learning_rate", "fine_tune", "validation_accuracy"]
FILE, OURS = "weights.safetensors", PRETRAINED / "without_cifar" / "5"
HELD_OUT, CALIBRATION, CHOICE = 1000, 2048, 12_000
"""Source images outside D0 on which coefficients are chosen, and images of D0 for running statistics; about how many
images a choice of coefficients shows: it has shown 8,000 to 13,000. No other attempt has images outside D0:
`further, more` is the control, with as many images as the combinations show."""


class Budget:
    """theta_0, its data, and a count of the images that were shown to networks on the way from it.

    trajectory: the forgetting trajectory that begins at the same theta_0. images: how many may be shown.
    """

    def __init__(self, run: SourceRun, trajectory: Trajectory, images: float):
        self.run, self.trajectory, self.images, self.shown = run, trajectory, images, 0
        self.theta_0, self.d0, self.step = run.theta_0, run.d0, run.settings.step

    def train(self, images: float, name: str, *, average: float | None = None, **how: Any) -> State:
        """theta_0 trained further as by `run_on`, or, if `average` is given, the mean of the iterates after that share
        of the steps. Running statistics are measured anew.
        """
        last, mean, _ = self.run_on(images, name, average=average, **how)
        return self.calibrated(last if mean is None else mean)

    def run_on(
        self,
        images: float,
        name: str,
        *,
        split: Split | None = None,
        start: tuple[State, dict] | None = None,
        average: float | None = None,
        decay: bool = False,
        **recipe: Any,
    ) -> tuple[State, State | None, dict]:
        """theta_0, or what an earlier call gave, trained in the manner of the forgetting steps on `images` images of
        D0, or of `split`: the last weights, the mean of the iterates if it was asked for, and the optimiser's state.

        name: decides the order of batches. start: weights and the optimiser's state. recipe: settings that differ from
        those of a forgetting step. decay: the iterates are not averaged evenly, but as the weights would be if the rate
        fell by 1 - sqrt(t) (WSM: Tian et al., ICLR 2026, arXiv 2507.17634; the even mean stands for a linear fall).
        """
        split = self.d0 if split is None else split
        weights, optimizer = start or (self.theta_0, self.run.optimizer)
        own = self.step.model_copy(update={"steps": round(images / self.step.batch_size), **recipe})
        model = self.model(weights)
        mean = AveragedModel(model, avg_fn=_by_root if decay else get_swa_avg_fn(), use_buffers=True)

        def after_step(step: int, total: int) -> None:
            if average is not None and step > average * total:
                mean.update_parameters(model)

        seed = stream(self.run.seed, "exploration", name)
        asked = {"seed": seed, "optimizer_state": optimizer, "after_step": after_step}
        outcome = train(model, self.run.dataset, split, own, **asked)
        if outcome.status != "ok":
            raise KnowError(f"{name}: the loss is not finite at learning rate {own.learning_rate:g}")
        self.shown += own.steps * own.batch_size
        return weights_of(model), None if average is None else weights_of(mean.module), outcome.optimizer

    def calibrated(self, state: State) -> State:
        """The same weights with running statistics measured on images of D0."""
        model = self.model(state)
        if has_running_statistics(model):
            recalibrate(model, self.run.dataset, self.d0.take(torch.arange(min(CALIBRATION, len(self.d0)))))
        return weights_of(model)

    def model(self, state: State) -> nn.Module:
        model = copy.deepcopy(self.run.start)
        model.load_state_dict(state)
        return model

    def halves(self) -> tuple[Split, Split]:
        """Two complementary halves of D0, drawn by the trajectory's seed."""
        order = torch.randperm(len(self.d0), generator=torch.Generator().manual_seed(stream(self.run.seed, "halves")))
        return tuple(self.d0.take(part) for part in order.chunk(2))

    def labels(self, state: State, split: Split) -> Tensor:
        """Probabilities (N, classes) that weights give to images."""
        self.shown += len(split)
        return logits(self.model(state), evaluated(self.run.dataset, split)).softmax(1)

    def held_out(self) -> Split:
        """Source images outside D0, which no training shows."""
        return self.run.pretraining.outside(HELD_OUT)


def _by_root(mean: Tensor, new: Tensor, averaged: int) -> Tensor:
    """The mean of k iterates of which the i-th has the share sqrt(i / k) - sqrt((i - 1) / k), from that of k - 1."""
    return mean + (1 - math.sqrt(averaged / (averaged + 1))) * (new - mean)


# the attempts


def theta_0(b: Budget) -> State:
    """theta_0 as it is."""
    return b.calibrated(b.theta_0)


def further(b: Budget, **how: Any) -> State:
    """theta_0 trained on at a constant rate: compute_matched."""
    return b.train(b.images, "further", **how)


def further_on_more(b: Budget) -> State:
    """The same on D0 and the held-out images, and for as long as a choice takes besides."""
    more = b.held_out()
    both = Split(torch.cat([b.d0.images, more.images]), torch.cat([b.d0.labels, more.labels]))
    return b.train(b.images + CHOICE, "further", split=both)


def local_oracle(b: Budget) -> State:
    """The same on twice the data."""
    return b.train(b.images, "further", split=b.run.pretraining.subset(2))


def oracle(b: Budget, *, rates_of_theta_0: bool = False) -> State:
    """Not theta_0 trained on, but its training made anew on twice the data, for as many steps: oracle_steps.

    The rate falls after each epoch, and an epoch of twice the data is twice as long. rates_of_theta_0: every step has
    the rate that the same step has in the training of theta_0.
    """
    origin = b.run.pretraining
    split, seed, size = origin.subset(2), stream(origin.seed, "pretraining"), origin.recipe.batch_size
    recipe = origin.recipe.model_copy(update={"steps": origin.recipe.epochs * steps_per_epoch(len(b.d0), size)})
    shown, model = show(b.run.dataset, split, torch.arange(len(split))[None], recipe, [seed]), b.model(origin.initial)
    outcome = train(model, b.run.dataset, b.d0 if rates_of_theta_0 else split, recipe, seed=seed, shown=shown)
    if outcome.status != "ok":
        raise KnowError(f"the oracle: the loss is not finite at learning rate {recipe.learning_rate:g}")
    b.shown += recipe.steps * size
    return b.calibrated(weights_of(model))


def rotation(b: Budget, *, average: bool) -> State:
    """The same, on one half of D0 and then on the other, in turns of a quarter of the budget; or the mean of all
    iterates on that way.
    """
    halves, means, now = b.halves(), [], None
    for turn in range(4):
        how = {"split": halves[turn % 2], "start": now, "average": 0.0}
        last, mean, optimizer = b.run_on(b.images / 4, f"rotation {turn}", **how)
        now, means = (last, optimizer), [*means, mean]
    return b.calibrated(mixed(dict.fromkeys(range(4), 0.25), means) if average else now[0])


def experts(b: Budget, share: float) -> list[State]:
    """theta_0 trained on each half of D0, on `share` of the budget in all."""
    return [b.train(b.images * share / 2, f"expert {k}", split=half) for k, half in enumerate(b.halves())]


def mean_of_halves(b: Budget) -> State:
    """The mean of two networks that were trained on complementary halves."""
    return b.calibrated(mixed({0: 0.5, 1: 0.5}, experts(b, 1)))


def model_stock(b: Budget) -> State:
    """theta_0 moved towards that mean by the rule of Model Stock (Jang et al., ECCV 2024), layer by layer."""
    one, two = experts(b, 1)
    made = {}
    for name, start in b.theta_0.items():
        made[name] = start
        if start.is_floating_point():
            steps = (one[name] - start).flatten(), (two[name] - start).flatten()
            cosine = float(F.cosine_similarity(*steps, dim=0).clamp(0, 1))
            made[name] = start + 2 * cosine / (1 + cosine) * ((one[name] + two[name]) / 2 - start)
    return b.calibrated(made)


def distilled(b: Budget) -> State:
    """theta_0 trained on labels that are half true, half from the expert that has not seen the image since theta_0."""
    halves, teachers = b.halves(), experts(b, 0.4)
    classes = len(b.run.dataset.classes)
    soft = [b.labels(teachers[1 - k], half) for k, half in enumerate(halves)]
    targets = [(F.one_hot(h.labels, classes) + given) / 2 for h, given in zip(halves, soft, strict=True)]
    both = Split(torch.cat([half.images for half in halves]), torch.cat(targets))
    return b.train(b.images - b.shown, "distilled", split=both)


def chosen(b: Budget, points: Sequence[State], *, layers: bool) -> State:
    """theta_0 plus sum of a_k (point_k - theta_0), each a_k of a role (or a layer) chosen by loss on held-out images.

    The loss is lowered from a = 0 by ten steps of L-BFGS on one batch, in which running statistics are the batch's own.
    """
    split, names = b.held_out(), only_predicted(roles(b.theta_0))
    places = sorted(set(names) if layers else set(names.values()))
    device = split.labels.device
    points = [{name: tensor.to(device) for name, tensor in point.items()} for point in points]
    a = torch.zeros(len(points), len(places), device=device, requires_grad=True)
    model, images = b.model(b.theta_0).train(), next(evaluated(b.run.dataset, split, len(split)))

    def combined(a: Tensor) -> dict[str, Tensor]:
        made = {name: tensor.clone() for name, tensor in b.theta_0.items()}  # the call changes running statistics
        for name, role in names.items():
            place = places.index(name if layers else role)
            moved = sum(a[k, place] * (point[name] - b.theta_0[name]) for k, point in enumerate(points))
            made[name] = b.theta_0[name] + moved
        return made

    optimizer = torch.optim.LBFGS([a], max_iter=10, max_eval=12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        b.shown += len(split)
        value = F.cross_entropy(functional_call(model, combined(a), (images,)), split.labels)
        value.backward()
        return value

    optimizer.step(loss)
    if not a.isfinite().all():
        raise KnowError("no finite coefficients were found")
    return b.calibrated({name: tensor.detach() for name, tensor in combined(a.detach()).items()})


def combination(b: Budget, *, layers: bool = False) -> State:
    """The snapshots of the forgetting trajectory, combined by loss on held-out images; signs are free."""
    b.shown += b.run.forgetting_images
    return chosen(b, b.trajectory.states[:-1], layers=layers)


def soup(b: Budget, *, layers: bool = False) -> State:
    """Four points on the way of further training, combined by loss on held-out images."""
    points, now = [], None
    for turn in range(4):
        last, _, optimizer = b.run_on((b.images - CHOICE) / 4, f"soup {turn}", start=now)
        now, points = (last, optimizer), [*points, last]
    return chosen(b, points, layers=layers)


def jackknife(b: Budget) -> State:
    """theta_0 trained on, moved away from the mean of two networks trained on halves, by a step for each layer."""
    budget = b.images - CHOICE
    whole = b.train(budget / 2, "further")
    pair = [b.train(budget / 4, f"expert {k}", split=half) for k, half in enumerate(b.halves())]
    return chosen(b, [whole, mixed({0: 0.5, 1: 0.5}, pair)], layers=True)


def scaled(b: Budget, method: str) -> State:
    """A method's step at x2, scaled for each role by loss on held-out images; 0 and negative factors are allowed."""
    b.shown += b.run.forgetting_images
    return chosen(b, [predict(b.trajectory, method, 1, known=OURS)], layers=False)


def shrunk(b: Budget) -> State:
    """theta_0 times a number for each role, chosen by loss on held-out images."""
    return chosen(b, [{name: torch.zeros_like(tensor) for name, tensor in b.theta_0.items()}], layers=False)


def shrunk_and_further(b: Budget) -> State:
    """The same, trained on with crops and mirror images for the rest of the budget."""
    start = shrunk(b), b.run.optimizer
    return b.calibrated(b.run_on(b.images - b.shown, "further", start=start, augment="shift")[0])


def shrunk_and_perturbed(b: Budget) -> State:
    """0.6 theta_0 and noise (Ash & Adams, NeurIPS 2020), fixed in advance."""
    seed = stream(b.run.seed, "exploration", "noise")
    return b.calibrated(predict(b.trajectory, "shrink_and_perturb", seed=seed))


def shorter(b: Budget, share: float) -> State:
    """Not theta_0, but its training made anew on D0 for a share of its epochs."""
    origin = b.run.pretraining
    recipe = origin.recipe.model_copy(update={"epochs": max(1, round(share * origin.recipe.epochs))})
    model = b.model(origin.initial)
    outcome = train(model, b.run.dataset, b.d0, recipe, seed=stream(origin.seed, "pretraining"))
    if outcome.status != "ok":
        raise KnowError("the shorter training diverged")
    b.shown += recipe.epochs * len(b.d0)
    return b.calibrated(weights_of(model))


def mixed(weights: Mapping[int, float], states: Sequence[State]) -> State:
    """The sum of states with these weights; what is no floating-point tensor is that of the first."""
    first = states[0]
    return {
        name: sum(weight * states[k][name] for k, weight in weights.items()) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


ATTEMPTS: dict[str, tuple[Callable[..., State], dict[str, Any]]] = {
    "theta_0": (theta_0, {}),
    "further": (further, {}),
    "further, annealed by epochs": (further, {"schedule": "cosine"}),
    "further, average of all": (further, {"average": 0.0}),
    "further, average of last half": (further, {"average": 0.5}),
    "further, augmented": (further, {"augment": "shift"}),
    "further, augmented, annealed by epochs": (further, {"augment": "shift", "schedule": "cosine"}),
    "further, augmented, average of all": (further, {"augment": "shift", "average": 0.0}),
    "further, augmented, average of last half": (further, {"augment": "shift", "average": 0.5}),
    "further, merged": (further, {"average": 0.0, "decay": True}),
    "rotation": (rotation, {"average": False}),
    "rotation, average of all": (rotation, {"average": True}),
    "mean of halves": (mean_of_halves, {}),
    "model stock": (model_stock, {}),
    "distilled": (distilled, {}),
    "soup, by role": (soup, {}),
    "jackknife, by layer": (jackknife, {}),
    "combination, by role": (combination, {"layers": False}),
    "combination, by layer": (combination, {"layers": True}),
    **{f"{name}, scaled by role": (scaled, {"method": method}) for name, method in SCALED.items()},
    "shrunk, by role": (shrunk, {}),
    "shrunk, by role, further, augmented": (shrunk_and_further, {}),
    "shrunk and perturbed": (shrunk_and_perturbed, {}),
    "further, decayed": (further, {"weight_decay": 0.01}),
    "shorter training": (shorter, {"share": 0.25}),
    "further, more": (further_on_more, {}),
    "local oracle": (local_oracle, {}),
    "oracle": (oracle, {}),
    "oracle, rates of theta_0": (oracle, {"rates_of_theta_0": True}),
}
"""Every attempt: its function and settings. `further, more` is the control of those that choose coefficients on
held-out images (of soup and jackknife with more images than they show), and the last three are what twice the data
give."""
OF_FORGETTING = ("combination", *SCALED)
OF_PRETRAINING = ("oracle", "shorter")
"""Beginnings of the attempts that exist at one budget: those that need the forgetting trajectory itself, and those that
take the place of theta_0's training."""


def exists(attempt: str, budget: str) -> bool:
    """Whether an attempt can be made with a budget."""
    only = {"forgetting": OF_FORGETTING, "x1": OF_PRETRAINING}
    return all(budget == name or not attempt.startswith(names) for name, names in only.items())


def lacking(attempt: str) -> str | None:
    """Why an attempt that asks networks of the authors cannot be made here, in one sentence; None if it can."""
    method = ATTEMPTS[attempt][1].get("method")
    return keras.missing(method) if method in keras.OUTSIDE else None


@dataclass(frozen=True)
class Exploration:
    """Attempts on one network, on trajectories with the settings of a suite. budgets: names in `BUDGETS`."""

    suite: str
    network: str
    budgets: tuple[str, ...]
    attempts: tuple[str, ...]
    store: Store = field(hash=False)
    work: Path
    transfer: bool = False
    """Whether they are fine-tuned on the target too."""
    device: str = "cpu"

    def rows(self, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of both tables (`COLUMNS`, `TRANSFERRED`) for one trajectory; what was made before is in the store."""
        suite = load_suite(self.suite)
        (pair,) = suite.pairs
        origin = Origin(pair.source, self.network)
        settings, recipe = suite.forgetting_of(suite.cells[0].origin), suite.pretraining
        asked = {"references": [], "store": self.store, "out": self.work / origin.slug, "device": self.device}
        make_origin(origin, [name], ["overflow"], recipe, settings, **asked)
        run = source_run(origin, name, recipe, settings, store=self.store, device=self.device)
        trajectory, sources, targets = Trajectory.load(asked["out"] / name / "overflow"), [], []
        for budget, attempt in itertools.product(self.budgets, self.attempts):
            if not exists(attempt, budget):
                continue
            function, options = ATTEMPTS[attempt]
            images = run.forgetting_images if budget == "forgetting" else round(BUDGETS[budget] * run.images)
            place = {"network": self.network, "trajectory": name, "attempt": attempt, "budget": budget}
            about = {**place, "source": pair.source, "options": options, "images": images, "data": run.dataset.sha256}
            about |= {"settings": settings.model_dump(mode="json"), "pretraining": recipe.model_dump(mode="json")}
            if attempt.startswith(OF_FORGETTING):
                about["snapshots"] = [each["sha256"] for each in trajectory.manifest["snapshots"]]
            if attempt.startswith((*SCALED,)):
                about["known"] = {file.name: sha256_file(file) for file in sorted(OURS.glob("*.safetensors"))}
                about["outside"] = keras.hashes()
            codes = [code_hash(f"benchmarks.exploration:{entry}") for entry in (function.__name__, "_attempt")]
            codes.append(code_hash(LOADING))
            make = functools.partial(_attempt, run, trajectory, images, function, options)
            file = self.store.folder("explored", about | computing(digest(codes), self.device), FILE, make) / FILE
            place["theta_0"] = Start(run.theta_0).fingerprint()[:8]
            sources.append({**place, **load_facts(file)})
            if self.transfer:
                targets += [{**place, **row} for row in self._transfer(load_state(file), pair.target, run.seed)]
        return sources, targets

    def _transfer(self, weights: State, target: str, seed: int) -> Iterator[dict[str, Any]]:
        """Fine-tunes of weights at every rate of the search, each judged by validation images of the target."""
        tuner, start = _tuner(self.suite, self.network, target, self.device), Start(weights)
        settings = tuner.settings
        made = {"network": self.network, **computing(code_hash("benchmarks.finetune", LOADING), self.device)}
        kept = self.store.results("explored-fine-tunes", {**made, "target": tuner.target.sha256})
        how = settings.model_dump(include={"recipe", "images", "validation"})
        rates = [*settings.grid, *(settings.grid[-1] * 2**k for k in range(1, settings.extensions + 1))]
        for rate, repeat in itertools.product(rates, range(FINE_TUNES)):
            request = FineTune(start, 1.0, rate, stream(seed, "target", target, repeat), False)
            key = [start.fingerprint(), how, rate, request.seed]
            result = kept.get(key, lambda request=request: vars(tuner(request)))
            accuracy = result["validation_accuracy"]
            yield {"learning_rate": rate, "fine_tune": repeat, "validation_accuracy": accuracy}


@functools.lru_cache(maxsize=1)
def _tuner(suite: str, network: str, target: str, device: str) -> FineTuner:
    return FineTuner(network, load(target, device=device), load_suite(suite).transfer)


def _attempt(
    run: SourceRun, trajectory: Trajectory, images: float, function: Callable[..., State], options: dict, out: Path
) -> None:
    budget = Budget(run, trajectory, images)
    state = function(budget, **options)
    test = run.dataset.test
    scores = logits(budget.model(state), evaluated(run.dataset, test))
    facts = {"images": budget.shown, "source_accuracy": round(correct(scores, test.labels), 6)}
    save_state(out / FILE, state, {**facts, "source_loss": round(float(F.cross_entropy(scores, test.labels)), 6)})


def add(folder: Path, sources: list[dict[str, Any]], targets: list[dict[str, Any]]) -> None:
    """Add rows of one trajectory to both tables, in place of what these have of the same attempts.

    Rows of the trajectory that begin at another theta_0 go: another processor or other code trains another one, and
    rows of two are never to be subtracted.
    """
    run = {key: sources[0][key] for key in ("network", "trajectory", "theta_0")}
    for name, columns, rows in (("sources.csv", COLUMNS, sources), ("targets.csv", TRANSFERRED, targets)):
        made, before = pd.DataFrame(rows, columns=columns), pd.DataFrame(columns=columns)
        if (folder / name).is_file():
            before = pd.read_csv(folder / name, dtype={"theta_0": str})
            here = (before["network"] == run["network"]) & (before["trajectory"] == run["trajectory"])
            again = before.set_index(KEYS).index.isin(made.set_index(KEYS).index)
            before = before[~again & ~(here & (before["theta_0"] != run["theta_0"]))]
        both = pd.concat([before, made]).fillna({"theta_0": ""}).sort_values(KEYS, kind="stable")
        write_csv(folder / name, both.to_dict("records"), columns)


def explore(asked: Exploration, trajectories: int, results: Path, processes: int = 1) -> None:
    """Make attempts on the trajectories e0, e1, ..., and add each to the tables in results/explored/ when it is done.

    KnowError for a budget or an attempt that does not exist, for one that lacks files of the authors, and for a suite
    with several pairs of datasets.
    """
    for kind, names, known in (("budget", asked.budgets, BUDGETS), ("attempt", asked.attempts, ATTEMPTS)):
        if strange := [name for name in names if name not in known]:
            raise unknown(kind, strange[0], known)
    if reasons := [reason for name in asked.attempts if (reason := lacking(name))]:
        raise KnowError(reasons[0])
    if len(load_suite(asked.suite).pairs) > 1:
        raise KnowError(f"suite {asked.suite!r} has several pairs of datasets; the settings of an exploration have one")
    folder = results / "explored" / (asked.suite if asked.suite != SUITE else "")
    with workers(processes) as each:
        made = each(asked.rows, [f"e{k}" for k in range(trajectories)])
        for sources, targets in progress(made, desc=asked.network, total=trajectories):
            add(folder, sources, targets)
