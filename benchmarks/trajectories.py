"""The trajectories of a suite: structured forgetting (paper, section 3) on two tracks.

* overflow (the paper's track): theta_0 is trained from scratch on D0, a half (or less) of the source training set;
* retrodiction (where the truth exists): theta_{-1} is trained on the whole source training set, and theta_0 is
  theta_{-1} fine-tuned on D0.

Both tracks start from one initialisation, and theta_{-1} of the second is the oracle of the first. A run from an
initialisation is kept in the store by content, so that all trajectories that need it, whatever their r, S or forgetting
steps, share it: theta_0 on a half of the source is the fourfold oracle of theta_0 on an eighth. References are kept one
by one, so that a suite trains those that it names, and suites with other references share the trajectory.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn
from torch.utils.data import Subset

from benchmarks.data import Dataset, Split, load
from benchmarks.networks import build, weights_of
from benchmarks.progress import progress
from benchmarks.references import REFERENCES, Average, Reference, kept
from benchmarks.settings import Forgetting, Origin, Recipe, Track
from benchmarks.store import LOADING, Store, computing, link_files, link_folder
from benchmarks.training import Outcome, accuracy, evaluated, logits, number_of_steps, recalibrate, right, train
from benchmarks.workers import workers
from know.checkpoints import State, load_state, save_state
from know.errors import KnowError
from know.files import atomic, digest, sha256_file, write_json
from know.fingerprint import code_hash
from know.forgetting import forget
from know.seeds import stream
from know.subsets import nested_subsets
from know.trajectory import add_references

ENTRY = "benchmarks.trajectories:make_origin"
"""The function from which the fingerprint of a trajectory's code is made."""
PRETRAINING = "benchmarks.trajectories:_Pretraining"
"""The same for a run from an initialisation."""
TAIL, MEMORY, DECAY = 0.25, 0.1, 3
"""The tail average covers the last quarter of the steps. The time constant of the EMA is a tenth of the steps. In the
decaying average step t has a weight that rises as t to this power."""
LATE, MEASURED = 0.5, 2048
"""The share of further steps over which they are averaged, the last ones, and on how many images of D0 the running
statistics of that average are measured."""


class _Fit:
    """`train` as the function `forget` wants, with the optimiser's state carried from subset to subset if asked.

    everything: make the placebo's steps, as many as on the subset, on all of the data.
    """

    def __init__(self, dataset: Dataset, settings: Forgetting, seed: int, *, everything: bool = False):
        self.dataset, self.settings, self.seed, self.everything = dataset, settings, seed, everything
        # the store's key has code and data
        self.fingerprint = digest([settings.model_dump(mode="json"), seed, everything])
        self.calls, self.optimizer = 0, None

    def __call__(self, model: nn.Module, subset: Subset) -> None:
        if self.everything:
            self.train(model, subset.dataset, steps=number_of_steps(self.settings.step, len(subset.indices)))
        else:
            self.train(model, subset.dataset.take(subset.indices))

    def train(
        self, model: nn.Module, split: Split, after_step: Callable | None = None, steps: int | None = None
    ) -> None:
        self.calls += 1
        state = self.optimizer if self.settings.carry_optimizer else None
        seed = stream(self.seed, "placebo" if self.everything else "forget", self.calls)
        recipe = self.settings.step if steps is None else self.settings.step.model_copy(update={"steps": steps})
        carried = {"optimizer_state": state, "after_step": after_step}
        outcome = train(model, self.dataset, split, recipe, seed=seed, **carried)
        _demand_finite(outcome, f"forgetting step {self.calls}")
        self.optimizer = outcome.optimizer

    def state_dict(self) -> dict:
        return {"calls": self.calls, "optimizer": self.optimizer}

    def load_state_dict(self, state: dict) -> None:
        self.calls, self.optimizer = state["calls"], state["optimizer"]


class _Averages:
    """Averages of weights and buffers over one training run, by their kind."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.averages: dict[Average, AveragedModel] = {}

    def after_step(self, step: int, steps: int) -> None:
        if not self.averages:
            ema = get_ema_multi_avg_fn(max(0.0, 1 - 1 / (MEMORY * steps)))
            for kind, function in (("ema", ema), ("decay", _decaying)):
                self.averages[kind] = AveragedModel(self.model, multi_avg_fn=function, use_buffers=True)
        if "tail" not in self.averages and step > (1 - TAIL) * steps:
            self.averages["tail"] = AveragedModel(self.model, avg_fn=get_swa_avg_fn(), use_buffers=True)
        for average in self.averages.values():
            average.update_parameters(self.model)

    def state(self, kind: Average) -> State:
        return weights_of(self.averages[kind].module)


@torch.no_grad()
def _decaying(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
    """Update averages in which value t has a weight of about t^DECAY (Shamir & Zhang 2013), after `count` values."""
    share = (1 + DECAY) / (float(count) + 1 + DECAY)
    for average, value in zip(averages, values, strict=True):
        if average.is_floating_point():
            average.lerp_(value, share)
        else:
            average.copy_(value)


def make_origin(
    origin: Origin,
    trajectories: Iterable[str],
    tracks: Sequence[Track],
    pretraining: Recipe,
    settings: Forgetting,
    *,
    store: Store,
    out: Path,
    references: Collection[str] = tuple(REFERENCES),
    device: str = "cpu",
    processes: int = 1,
) -> None:
    """Make all trajectories of one source and network: `<out>/<trajectory>/<track>/`, and `<out>/manifest.json` last.

    references: names of those that are made, as far as they exist. Besides them all trajectories keep their
    initialisation (`scratch`), and on the retrodiction track theta_{-1} (`oracle`), which methods and records ask for.
    store: they are kept in the store, and `out` has links to its files; a trajectory that any suite has put there is
    not trained again. processes: how many share the trajectories; the result is the same.
    Raises KnowError if the smallest subset would have fewer images than `settings.smallest`.
    """
    dataset = _source(origin.source, device=device)
    smallest = round(settings.d0 * len(dataset.train) * settings.ratio ** (settings.length - 1))
    if smallest < settings.smallest:
        raise KnowError(
            f"{origin.source}: the smallest subset would have {smallest} images, the suite asks for at least "
            f"{settings.smallest} (forgetting.smallest); use a larger source, fewer snapshots or a larger ratio"
        )
    described = {"source": origin.source, "network": origin.network, "data": dataset.sha256}
    described |= {"pretraining": pretraining.model_dump(), "forgetting": settings.model_dump(mode="json")}
    code = code_hash(ENTRY)
    trajectories = list(trajectories)
    names = frozenset(references)
    make = functools.partial(_one_trajectory, store, origin, tracks, names, pretraining, settings, described, device)
    with workers(processes) as each:
        made: dict[str, str] = {}
        done = zip(trajectories, each(make, trajectories), strict=True)
        for trajectory, folders in progress(done, desc=f"trajectories of {origin.slug}", total=len(trajectories)):
            for track, (folder, others) in zip(tracks, folders, strict=True):
                link_folder(folder, out / trajectory / track)
                for file in others.values():
                    link_files(file.parent, out / trajectory / track, [file.name])
                add_references(out / trajectory / track, {name: file.name for name, file in others.items()})
                manifest = f"{trajectory}/{track}/manifest.json"
                made[manifest] = sha256_file(out / manifest)
    write_json(out / "manifest.json", {"code": code, **described, "trajectories": made})


_source = functools.lru_cache(maxsize=1)(load)


def _one_trajectory(
    store: Store,
    origin: Origin,
    tracks: Sequence[Track],
    references: Collection[str],
    pretraining: Recipe,
    settings: Forgetting,
    described: Mapping[str, Any],
    device: str,
    trajectory: str,
) -> list[tuple[Path, dict[str, Path]]]:
    """Make one trajectory where the store lacks it; returns, for each track, its folder in the store, and the file of
    each reference there.
    """
    seed = stream("source", origin.source, origin.network, trajectory)
    dataset = _source(origin.source, device=device)

    @functools.cache
    def pretrained() -> _Pretraining:
        return _Pretraining(store, origin, trajectory, dataset, pretraining, settings, seed, device)

    @functools.cache
    def source_run(track: Track) -> SourceRun:
        return SourceRun(pretrained(), track)

    def make(track: Track, out: Path) -> None:
        run = source_run(track)
        forget(
            copy.deepcopy(run.start),
            pretrained().subset(1),
            run.forgetting(),
            placebo=run.forgetting(everything=True),
            ratio=settings.ratio,
            length=settings.length,
            seed=stream(seed, "subsets"),
            out=out,
            describe=run.describe,
            facts={**described, "track": track, "trajectory": trajectory, "source_seed": seed},
        )

    folders = []
    for track in tracks:
        about = {**described, **computing(code_hash(ENTRY), device), "track": track, "trajectory": trajectory}
        folder = store.folder("trajectories", about, "manifest.json", functools.partial(make, track))
        others = {}
        for each in kept(references, track, settings.d0):
            keep = functools.partial(_keep, each, functools.partial(source_run, track))
            file = f"{each.name}.safetensors"
            others[each.name] = store.folder("references", {**about, "reference": each.name}, file, keep) / file
        folders.append((folder, others))
    return folders


def _keep(reference: Reference, source_run: Callable[[], SourceRun], out: Path) -> None:
    save_state(out / f"{reference.name}.safetensors", reference.function(source_run()))


def source_run(
    origin: Origin, trajectory: str, pretraining: Recipe, settings: Forgetting, *, store: Store, device: str = "cpu"
) -> SourceRun:
    """The run that makes theta_0 of one trajectory on the overflow track, for what else begins there."""
    seed, dataset = stream("source", origin.source, origin.network, trajectory), _source(origin.source, device=device)
    return SourceRun(_Pretraining(store, origin, trajectory, dataset, pretraining, settings, seed, device), "overflow")


class _Pretraining:
    """Runs from one initialisation on D0 and on larger subsets, each of which is trained once."""

    def __init__(
        self,
        store: Store,
        origin: Origin,
        trajectory: str,
        dataset: Dataset,
        recipe: Recipe,
        settings: Forgetting,
        seed: int,
        device: str,
    ):
        self.store, self.dataset, self.recipe, self.settings, self.seed = store, dataset, recipe, settings, seed
        self.place = {"source": origin.source, "network": origin.network, "trajectory": trajectory}
        self.device, self.what = device, f"pretraining of {origin.slug}, {trajectory}"
        fresh = build(origin.network, dataset.shape, len(dataset.classes), seed=stream(seed, "initialisation"))
        self.initial = weights_of(fresh)
        self.model = fresh.to(device)

    def subset(self, factor: int) -> Split:
        """D0, or the subset of the source that contains D0 and is `factor` times as large."""
        if factor * self.settings.d0 == 1:
            return self.dataset.train
        fraction, count = factor * self.settings.d0, len(self.dataset.train)
        (index,) = nested_subsets(count, seed=stream(self.seed, "D0"), fractions=[fraction])
        return self.dataset.train.take(index)

    def outside(self, images: int) -> Split:
        """Images of the source that are not in D0, drawn by the trajectory's seed."""
        count = len(self.dataset.train)
        (index,) = nested_subsets(count, seed=stream(self.seed, "D0"), fractions=[self.settings.d0])
        others = torch.ones(count, dtype=torch.bool)
        others[index] = False
        order = torch.randperm(count, generator=torch.Generator().manual_seed(stream(self.seed, "outside")))
        return self.dataset.train.take(order[others[order]][:images])

    def run(self, factor: int, steps: float | None = None) -> Path:
        """The folder of a finished run: weights, averages and the optimiser's state (`_KEPT`).

        factor: how many times D0 it is trained on. steps: how many times the steps of theta_0 it makes; by default it
        makes as many epochs.
        """
        recipe = self.recipe
        if steps:
            recipe = recipe.model_copy(update={"steps": round(steps * number_of_steps(recipe, len(self.subset(1))))})
        about = {**self.place, "data": self.dataset.sha256, "recipe": recipe.model_dump(mode="json")}
        about |= {"fraction": factor * self.settings.d0, **computing(code_hash(PRETRAINING, LOADING), self.device)}
        make = functools.partial(
            _pretrain, self.model, self.initial, self.dataset, self.subset(factor), recipe, self.seed, self.what
        )
        return self.store.folder("pretrained", about, _KEPT[-1], make)


_KEPT = ("tail.safetensors", "ema.safetensors", "decay.safetensors", "optimizer.pt", "weights.safetensors")
"""Files of a finished run; the last is written last."""


def _pretrain(
    model: nn.Module,
    initial: State,
    dataset: Dataset,
    split: Split,
    recipe: Recipe,
    seed: int,
    what: str,
    out: Path,
) -> None:
    """Train `model` from its initialisation and keep what became of it in the folder `out`."""
    model.load_state_dict(initial)
    averages = _Averages(model)
    own = stream(seed, "pretraining")
    outcome = train(model, dataset, split, recipe, seed=own, after_step=averages.after_step)
    _demand_finite(outcome, what)
    for kind in get_args(Average):
        save_state(out / f"{kind}.safetensors", averages.state(kind))
    with atomic(out / "optimizer.pt") as temporary:
        torch.save(outcome.optimizer, temporary)
    save_state(out / _KEPT[-1], weights_of(model))


class SourceRun:
    """The run that makes theta_0 on one track, as references use it (`benchmarks.references.SourceRun`)."""

    def __init__(self, pretraining: _Pretraining, track: Track):
        self.pretraining, self.settings = pretraining, pretraining.settings
        self.dataset, self.initial, self.d0 = pretraining.dataset, pretraining.initial, pretraining.subset(1)
        self.seed = stream(pretraining.seed, track)
        self.start = copy.deepcopy(pretraining.model)
        self.averages: _Averages | None = None
        self.further = functools.cache(self._further)  # the mean is of the same run as the last weights
        self.right = functools.cache(self._right)
        self.made = pretraining.run(1 if track == "overflow" else 2)
        self.start.load_state_dict(load_state(self.made / _KEPT[-1]))
        fit = _Fit(self.dataset, self.settings, self.seed)
        fit.optimizer = torch.load(self.made / "optimizer.pt", weights_only=True, map_location=pretraining.device)
        if track == "retrodiction":  # theta_0 is theta_{-1} after the first forgetting step
            self.averages = _Averages(self.start)
            fit.train(self.start, self.d0, self.averages.after_step)
        self.calls, self.optimizer = fit.calls, fit.optimizer
        self.theta_0 = weights_of(self.start)

    def forgetting(self, *, everything: bool = False) -> _Fit:
        """The function that makes the forgetting steps from theta_0, or those of the placebo (`_Fit`)."""
        fit = _Fit(self.dataset, self.settings, self.seed, everything=everything)
        fit.calls, fit.optimizer = 0 if everything else self.calls, self.optimizer
        return fit

    @property
    def images(self) -> int:
        """How many images training of theta_0 showed, on the overflow track."""
        return self.pretraining.recipe.epochs * len(self.d0)

    @property
    def forgetting_steps(self) -> int:
        """How many updates all forgetting steps make together."""
        settings = self.settings
        sizes = [round(len(self.d0) * settings.ratio**k) for k in range(1, settings.length)]
        return sum(number_of_steps(settings.step, size) for size in sizes)

    @property
    def forgetting_images(self) -> int:
        """How many images they show, counted in whole batches."""
        return self.forgetting_steps * self.settings.step.batch_size

    def pretrain(self, factor: int, *, steps: float | None = None) -> State:
        return load_state(self.pretraining.run(factor, steps) / _KEPT[-1])

    def average(self, kind: Average) -> State:
        return self.averages.state(kind) if self.averages else load_state(self.made / f"{kind}.safetensors")

    def train_on(self, factor: int = 1, *, augmented: bool = False, averaged: bool = False) -> State:
        """Train theta_0 further, (r + ... + r^(S-1)) times the epochs of a step on D0: 0.94 at r = 0.5, S = 5."""
        return self.further(factor, augmented)[averaged]

    def _further(self, factor: int, augmented: bool) -> tuple[State, State | None]:
        """The last weights of such training and, on D0, their mean over its last half."""
        settings, split = self.settings, self.pretraining.subset(factor)
        changes = {"steps": self.forgetting_steps, **({"augment": "shift"} if augmented else {})}
        recipe = settings.step.model_copy(update=changes)
        model, state = copy.deepcopy(self.start), self.optimizer if settings.carry_optimizer else None
        averaged = factor == 1  # what no arm asks for costs time
        mean = AveragedModel(model, avg_fn=get_swa_avg_fn(), use_buffers=True) if averaged else None

        def after_step(step: int, steps: int) -> None:
            if mean and step > (1 - LATE) * steps:
                mean.update_parameters(model)

        seed = stream(self.seed, "compute_matched" if factor == 1 else "local_oracle")
        carried = {"optimizer_state": state, "after_step": after_step}
        outcome = train(model, self.dataset, split, recipe, seed=seed, **carried)
        _demand_finite(outcome, f"further training of theta_0 on {factor} times D0")
        if not mean:
            return weights_of(model), None
        recalibrate(mean.module, self.dataset, split.take(range(min(MEASURED, len(split)))))
        return weights_of(model), weights_of(mean.module)

    def describe(self, model: nn.Module, index: list[int]) -> dict[str, float]:
        """Source test accuracy, and accuracy on D0 without the subset (`left_out`), of `model` and of theta_0."""
        dataset, d0 = self.dataset, self.d0
        facts = {"test_accuracy": round(accuracy(model, dataset, dataset.test), 6)}
        if len(index) == len(d0):
            return facts
        left_out = torch.ones(len(d0), dtype=torch.bool)
        left_out[index] = False
        facts["left_out_accuracy"] = round(accuracy(model, dataset, d0.take(left_out.nonzero()[:, 0])), 6)
        facts["left_out_accuracy_theta_0"] = round(float(self.right()[left_out].double().mean()), 6)
        return facts

    def _right(self) -> Tensor:
        """Which images of D0 theta_0 answers correctly, bool (N,), on the host."""
        return right(logits(self.start, evaluated(self.dataset, self.d0)), self.d0.labels).cpu()


def _demand_finite(outcome: Outcome, what: str) -> None:
    """Raise KnowError if a run diverged, since a trajectory cannot continue from weights that are not finite."""
    if outcome.status != "ok":
        rate = outcome.history[-1]["learning_rate"]
        raise KnowError(f"{what} {outcome.status} (loss not finite) at learning rate {rate:g}; lower it")
