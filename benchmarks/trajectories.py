"""The trajectories of a suite: structured forgetting (paper, section 3) on two tracks.

* overflow (the paper's track): theta_0 is trained from scratch on D0, a half (or less) of the source training set;
* retrodiction (where the truth exists): theta_{-1} is trained on the whole source training set, and theta_0 is
  theta_{-1} fine-tuned on D0.

Both tracks start from one initialisation, and theta_{-1} of the second is the oracle of the first.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Subset

from benchmarks.data import Dataset, Split, load
from benchmarks.networks import build
from benchmarks.progress import progress
from benchmarks.references import REFERENCES
from benchmarks.settings import Forgetting, Origin, Recipe, Track
from benchmarks.store import Store, computing, link_folder
from benchmarks.training import Outcome, accuracy, steps_per_epoch, train
from benchmarks.workers import workers
from know.checkpoints import State
from know.errors import KnowError
from know.files import digest, sha256_file, write_json
from know.fingerprint import code_hash
from know.forgetting import forget
from know.seeds import stream
from know.subsets import nested_subsets

ENTRY = "benchmarks.trajectories:make_origin"
"""The function from which the fingerprint of a trajectory's code is made."""
TAIL, MEMORY = 0.25, 0.1
"""The tail average covers the last quarter of the steps. The time constant of the EMA is a tenth of the steps."""


class _Fit:
    """`train` as the function `forget` wants, with the optimiser's state carried from subset to subset if asked."""

    def __init__(self, dataset: Dataset, settings: Forgetting, seed: int):
        self.dataset, self.settings, self.seed = dataset, settings, seed
        self.fingerprint = digest([settings.model_dump(mode="json"), seed])  # the store's key has code and data
        self.calls, self.optimizer = 0, None

    def __call__(self, model: nn.Module, subset: Subset) -> None:
        self.train(model, subset.dataset.take(subset.indices))

    def train(self, model: nn.Module, split: Split, after_step: Callable | None = None) -> None:
        self.calls += 1
        state = self.optimizer if self.settings.carry_optimizer else None
        seed = stream(self.seed, "forget", self.calls)
        recipe = self.settings.step
        carried = {"optimizer_state": state, "after_step": after_step}
        outcome = train(model, self.dataset, split, recipe, seed=seed, **carried)
        _demand_finite(outcome, f"forgetting step {self.calls}")
        self.optimizer = outcome.optimizer

    def state_dict(self) -> dict:
        return {"calls": self.calls, "optimizer": self.optimizer}

    def load_state_dict(self, state: dict) -> None:
        self.calls, self.optimizer = state["calls"], state["optimizer"]


class _Averages:
    """Averages of weights and buffers over one training run: one over its tail, and an exponential one (EMA)."""

    def __init__(self, model: nn.Module):
        self.model, self.tail, self.ema = model, None, None

    def after_step(self, step: int, steps: int) -> None:
        if self.ema is None:
            decay = max(0.0, 1 - 1 / (MEMORY * steps))
            self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.ema.update_parameters(self.model)
        if step > (1 - TAIL) * steps:
            self.tail = self.tail or AveragedModel(self.model, use_buffers=True)
            self.tail.update_parameters(self.model)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def make_origin(
    origin: Origin,
    trajectories: Iterable[str],
    tracks: Sequence[Track],
    pretraining: Recipe,
    settings: Forgetting,
    *,
    store: Store,
    out: Path,
    device: str = "cpu",
    processes: int = 1,
) -> None:
    """Make all trajectories of one source and network: `<out>/<trajectory>/<track>/`, and `<out>/manifest.json` last.

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
    make = functools.partial(_one_trajectory, store, origin, tracks, pretraining, settings, described, device)
    with workers(processes) as each:
        made: dict[str, str] = {}
        done = zip(trajectories, each(make, trajectories), strict=True)
        for trajectory, folders in progress(done, desc=f"trajectories of {origin.slug}", total=len(trajectories)):
            for track, folder in zip(tracks, folders, strict=True):
                link_folder(folder, out / trajectory / track)
                manifest = f"{trajectory}/{track}/manifest.json"
                made[manifest] = sha256_file(out / manifest)
    write_json(out / "manifest.json", {"code": code, **described, "trajectories": made})


_source = functools.lru_cache(maxsize=1)(load)


def _one_trajectory(
    store: Store,
    origin: Origin,
    tracks: Sequence[Track],
    pretraining: Recipe,
    settings: Forgetting,
    described: Mapping[str, Any],
    device: str,
    trajectory: str,
) -> list[Path]:
    """Make one trajectory where the store lacks it; returns its folder in the store for each track."""
    seed = stream("source", origin.source, origin.network, trajectory)
    dataset = _source(origin.source, device=device)

    @functools.cache
    def pretrained() -> _Pretraining:
        what = f"{origin.slug}, {trajectory}"
        return _Pretraining(origin, dataset, pretraining, settings, seed, what, device)

    def make(track: Track, out: Path) -> None:
        run = _SourceRun(pretrained(), track)
        kept = (reference for reference in REFERENCES.values() if reference.name != "naive")
        references = {r.name: r.function(run) for r in kept if r.exists(track, settings.d0)}
        forget(
            run.model,
            pretrained().subset(1),
            run.fit,
            ratio=settings.ratio,
            length=settings.length,
            seed=stream(seed, "subsets"),
            out=out,
            describe=run.describe,
            references=references,
            facts={**described, "track": track, "trajectory": trajectory, "source_seed": seed},
        )

    folders = []
    for track in tracks:
        about = {**described, **computing(code_hash(ENTRY), device), "track": track, "trajectory": trajectory}
        folders.append(store.folder("trajectories", about, "manifest.json", functools.partial(make, track)))
    return folders


class _Pretraining:
    """Runs from one initialisation on D0 and on larger subsets; each is trained once, when it is first needed."""

    def __init__(
        self, origin: Origin, dataset: Dataset, recipe: Recipe, settings: Forgetting, seed: int, what: str, device: str
    ):
        self.dataset, self.recipe, self.settings, self.seed, self.what = dataset, recipe, settings, seed, what
        fresh = build(origin.network, dataset.shape, len(dataset.classes), seed=stream(seed, "initialisation"))
        self.initial = _copy(fresh)
        self.model = fresh.to(device)
        self.run = functools.cache(self._run)

    def subset(self, factor: int) -> Split:
        """D0, or the subset of the source that contains D0 and is `factor` times as large."""
        if factor * self.settings.d0 == 1:
            return self.dataset.train
        fraction, count = factor * self.settings.d0, len(self.dataset.train)
        (index,) = nested_subsets(count, seed=stream(self.seed, "D0"), fractions=[fraction])
        return self.dataset.train.take(index)

    def _run(self, factor: int, same_steps: bool) -> tuple[State, dict | None]:
        recipe = self.recipe
        if same_steps:
            steps = recipe.epochs * steps_per_epoch(len(self.subset(1)), recipe.batch_size)
            recipe = recipe.model_copy(update={"steps": steps})
        return self.train(self.model, self.subset(factor), recipe)

    def train(
        self, model: nn.Module, split: Split, recipe: Recipe, after_step: Callable | None = None
    ) -> tuple[State, dict | None]:
        """Train a model of this network from the initialisation; returns its weights and the optimiser's state."""
        model.load_state_dict(self.initial)
        seed = stream(self.seed, "pretraining")
        outcome = train(model, self.dataset, split, recipe, seed=seed, after_step=after_step)
        _demand_finite(outcome, f"pretraining of {self.what}")
        return _copy(model), outcome.optimizer


class _SourceRun:
    """The run that makes theta_0 on one track, as references use it (`benchmarks.references.SourceRun`)."""

    def __init__(self, pretraining: _Pretraining, track: Track):
        self.pretraining, self.settings = pretraining, pretraining.settings
        self.dataset, self.initial, self.d0 = pretraining.dataset, pretraining.initial, pretraining.subset(1)
        self.seed = stream(pretraining.seed, track)
        self.fit = _Fit(self.dataset, self.settings, self.seed)
        self.model = copy.deepcopy(pretraining.model)
        self.averages = _Averages(self.model)
        if track == "overflow":
            after_step = self.averages.after_step
            _, self.fit.optimizer = pretraining.train(self.model, self.d0, pretraining.recipe, after_step)
        else:
            oracle, self.fit.optimizer = pretraining.run(2, False)
            self.model.load_state_dict(oracle)
            # theta_0 is theta_{-1} after the first forgetting step
            self.fit.train(self.model, self.d0, self.averages.after_step)
        self.start = copy.deepcopy(self.model)
        self.theta_0 = _copy(self.start)

    def pretrain(self, factor: int, *, same_steps: bool = False) -> State:
        return self.pretraining.run(factor, same_steps)[0]

    def average(self, kind: Literal["tail", "ema"]) -> State:
        return _copy((self.averages.tail if kind == "tail" else self.averages.ema).module)

    def train_on(self) -> State:
        """Train theta_0 further on D0, (r + ... + r^(S-1)) times the epochs of a step: 0.94 at r = 0.5, S = 5."""
        step, settings = self.settings.step, self.settings
        sizes = [round(len(self.d0) * settings.ratio**k) for k in range(1, settings.length)]
        steps = sum(step.steps or step.epochs * steps_per_epoch(size, step.batch_size) for size in sizes)
        model, state = copy.deepcopy(self.start), self.fit.optimizer if settings.carry_optimizer else None
        recipe, seed = step.model_copy(update={"steps": steps}), stream(self.seed, "compute_matched")
        outcome = train(model, self.dataset, self.d0, recipe, seed=seed, optimizer_state=state)
        _demand_finite(outcome, "further training of theta_0 (compute_matched)")
        return _copy(model)

    def describe(self, model: nn.Module, index: list[int]) -> dict[str, float]:
        """Source test accuracy, and accuracy on D0 without the subset (`left_out`), of `model` and of theta_0."""
        dataset, d0 = self.dataset, self.d0
        facts = {"test_accuracy": round(accuracy(model, dataset, dataset.test), 6)}
        if len(index) == len(d0):
            return facts
        left_out = torch.ones(len(d0), dtype=torch.bool)
        left_out[index] = False
        rest = d0.take(left_out.nonzero()[:, 0])
        facts["left_out_accuracy"] = round(accuracy(model, dataset, rest), 6)
        facts["left_out_accuracy_theta_0"] = round(accuracy(self.start, dataset, rest), 6)
        return facts


def _demand_finite(outcome: Outcome, what: str) -> None:
    """Raise KnowError if a run diverged, since a trajectory cannot continue from weights that are not finite."""
    if outcome.status != "ok":
        rate = outcome.history[-1]["learning_rate"]
        raise KnowError(f"{what} {outcome.status} (loss not finite) at learning rate {rate:g}; lower it")
