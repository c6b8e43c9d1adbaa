"""Structured forgetting (paper, section 3): fine-tune on ever smaller nested subsets and keep every snapshot.

`forget` does it with anybody's model, data and training function. `make_origin` does it for a suite, on two tracks:

* overflow (the paper's): theta_0 is trained from scratch on D0, a half (or less) of the source training set;
* retrodiction (where truth exists): theta_{-1} is trained on all of the source set, theta_0 is theta_{-1} fine-tuned
  on D0.

Both start from one initialisation, and theta_{-1} of the second is the oracle of the first.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Subset

from benchmarks.data import Dataset, Split, load, nested_subsets
from benchmarks.networks import build
from benchmarks.progress import progress
from benchmarks.suite import Forgetting, Origin, Recipe, Track
from benchmarks.training import Outcome, accuracy, steps_per_epoch, train
from benchmarks.workers import workers
from know.checkpoints import State, load_state, save_state
from know.errors import KnowError
from know.files import atomic, code_hash, digest, resumable_folder, sha256_file, write_json
from know.seeds import stream
from know.trajectory import Recorder, Trajectory, check_fractions

TAIL, MEMORY = 0.25, 0.1
"""Tail average: over the last quarter of the steps. EMA: its time constant is a tenth of the steps."""


def forget(
    model: nn.Module,
    dataset: Any,
    fit: Callable[[nn.Module, Any], object],
    *,
    rate: float = 0.5,
    length: int = 5,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    out: Path | str,
    describe: Callable[[nn.Module, list[int]], Mapping[str, Any]] | None = None,
    references: Mapping[str, Mapping[str, Tensor]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Trajectory:
    """Make the forgetting trajectory of `model`, which was trained on all of `dataset` (theta_0 on D0).

    model: trained in place; ends as the snapshot of the smallest subset.
    dataset: anything with a length and integer indexing; `fit` gets a torch `Subset` of it (or a `Split`).
    fit: `fit(model, subset)`, your training function. If it has `state_dict()` and `load_state_dict()`, its state (an
        optimiser's, say) is kept too, so that a resumed run equals an uninterrupted one.
    rate, length: S snapshots at 1, r, r^2, ... of the data; or `fractions`, smallest first, ending at 1.
    out: folder to make. An interrupted call is resumed if weights, data size, settings and `fit` are the same; a
        finished folder of the same settings is returned as it is, another one is an error.
    describe: extra facts per snapshot from (model, indices of the subset), kept in the manifest with `facts`.
    references: further weights to keep in the folder, by name.

    Returns the finished trajectory, smallest subset first.
    """
    fractions = check_fractions(fractions or [rate**k for k in reversed(range(length))])
    subsets = nested_subsets(len(dataset), seed=seed, fractions=fractions)
    if not subsets[0]:
        raise KnowError(f"the smallest subset, {fractions[0]:g} of {len(dataset)} images, is empty")
    out = Path(out)
    settings = {"fractions": fractions, "seed": seed, "images": len(dataset), "fit": _source_of(fit), **(facts or {})}
    fingerprint = digest({"settings": settings, "weights": _hash_weights(model), "code": code_hash(__name__)})
    if (out / "manifest.json").is_file():
        trajectory = Trajectory.load(out)
        if trajectory.manifest.get("fingerprint") != fingerprint:
            raise KnowError(f"{out} holds a trajectory of other weights, data or settings; remove it or name another")
        return trajectory
    _refuse_other_content(out)
    stateful = hasattr(fit, "state_dict") and hasattr(fit, "load_state_dict")
    theta_0 = copy.deepcopy(model.state_dict())
    with _restored(model, theta_0), resumable_folder(out, fingerprint) as folder:
        recorder = Recorder(folder, fractions)
        for k, (fraction, index) in enumerate(zip(reversed(fractions), reversed(subsets), strict=True)):
            extra = folder / f"fit-{k}.pt"
            if fraction in recorder:  # written by an interrupted call
                model.load_state_dict(recorder.state(fraction))
                if stateful:
                    fit.load_state_dict(torch.load(extra, weights_only=True))
                continue
            if k > 0:
                fit(model, dataset.take(index) if isinstance(dataset, Split) else Subset(dataset, index))
            if stateful:
                buffer = io.BytesIO()  # torch's own writer has no OSError for a full disk
                torch.save(fit.state_dict(), buffer)
                with atomic(extra) as temporary:
                    temporary.write_bytes(buffer.getbuffer())
            recorder.add(model, fraction, images=len(index), **(describe(model, index) if describe else {}))
        for name, state in (references or {}).items():
            save_state(folder / f"{name}.safetensors", state)
        for extra in folder.glob("fit-*.pt"):
            extra.unlink()
        kept = {name: f"{name}.safetensors" for name in references or {}}
        recorder.finish(kept, fingerprint=fingerprint, seed=seed, **(facts or {}))
    return Trajectory.load(out)


@contextlib.contextmanager
def _restored(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the model its weights back if the block is interrupted, so that the same call resumes it."""
    try:
        yield
    except BaseException:
        model.load_state_dict(state)
        raise


class _Fit:
    """`train` as the function `forget` wants, with the optimiser's state carried from subset to subset if asked."""

    def __init__(self, dataset: Dataset, settings: Forgetting, seed: int, *, progress: bool = False):
        self.dataset, self.settings, self.seed, self.progress = dataset, settings, seed, progress
        self.calls, self.optimizer = 0, None

    def __call__(self, model: nn.Module, split: Split, after_step: Callable | None = None) -> None:
        self.calls += 1
        state = self.optimizer if self.settings.carry_optimizer else None
        seed = stream(self.seed, "forget", self.calls)
        label = f"forgetting step {self.calls}" if self.progress else None
        recipe = self.settings.step
        carried = {"optimizer_state": state, "after_step": after_step}
        outcome = train(model, self.dataset, split, recipe, seed=seed, progress=label, **carried)
        _demand_finite(outcome, f"forgetting step {self.calls}")
        self.optimizer = outcome.optimizer

    def state_dict(self) -> dict:
        return {"calls": self.calls, "optimizer": self.optimizer}

    def load_state_dict(self, state: dict) -> None:
        self.calls, self.optimizer = state["calls"], state["optimizer"]


class _Averages:
    """Averages of the weights over one training run, buffers included: of its tail, and exponential (EMA)."""

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

    def states(self) -> dict[str, dict[str, Tensor]]:
        """The references `tail_average` and `ema`: full state_dicts."""
        averages = {"tail_average": self.tail, "ema": self.ema}
        return {name: _copy(average.module) for name, average in averages.items()}


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def forget_builtin(
    dataset: str,
    network: str,
    pretraining: Recipe,
    settings: Forgetting,
    *,
    weights: Path | None = None,
    seed: int = 0,
    out: Path,
    device: str = "cpu",
) -> Trajectory:
    """The trajectory of a built-in network on all training images of a built-in dataset.

    weights: theta_0 (.safetensors or .pt); if None, theta_0 is trained first with `pretraining`.
    """
    _refuse_other_content(out)
    data = load(dataset, device=device)
    model = build(network, data.shape, len(data.classes), seed=stream(seed, "initialisation")).to(device)
    fit = _Fit(data, settings, stream(seed, "steps"), progress=True)
    if weights is None:
        outcome = train(
            model, data, data.train, pretraining, seed=stream(seed, "pretraining"), progress="training theta_0"
        )
        _demand_finite(outcome, "the training of theta_0")
        fit.optimizer = outcome.optimizer
    else:
        try:
            model.load_state_dict(load_state(weights))
        except RuntimeError as error:
            raise KnowError(f"{weights} does not fit {network} on {dataset}: {error}") from error
    facts = {
        "dataset": dataset,
        "network": network,
        "data": data.sha256,
        "forgetting": settings.model_dump(mode="json"),
    }
    return forget(
        model,
        data.train,
        fit,
        rate=settings.rate,
        length=settings.length,
        seed=stream(seed, "subsets"),
        out=out,
        describe=lambda model, _: {"test_accuracy": round(accuracy(model, data, data.test), 6)},
        facts=facts,
    )


def make_origin(
    origin: Origin,
    trajectories: Iterable[str],
    tracks: Sequence[Track],
    pretraining: Recipe,
    settings: Forgetting,
    *,
    out: Path,
    device: str = "cpu",
    processes: int = 1,
) -> None:
    """Make all trajectories of one source and network: `<out>/<trajectory>/<track>/`, and `<out>/manifest.json` last.

    processes: how many share the trajectories; the result is the same.
    Raises KnowError if the smallest subset would have fewer images than `settings.smallest`.
    """
    dataset = _source(origin.source, device=device)
    smallest = round(settings.d0 * len(dataset.train) * settings.rate ** (settings.length - 1))
    if smallest < settings.smallest:
        raise KnowError(
            f"{origin.source}: the smallest subset would have {smallest} images, the suite asks for at least "
            f"{settings.smallest} (forgetting.smallest); use a larger source, fewer snapshots or a larger rate"
        )
    described = {"source": origin.source, "network": origin.network, "data": dataset.sha256}
    described |= {"pretraining": pretraining.model_dump(), "forgetting": settings.model_dump(mode="json")}
    code = code_hash(__name__)
    trajectories = list(trajectories)
    fingerprint = digest([described, trajectories, list(tracks), code, torch.__version__])
    with workers(processes) as each, resumable_folder(out, fingerprint) as folder:
        made: dict[str, str] = {}
        make = functools.partial(_one_trajectory, folder, origin, tracks, pretraining, settings, described, device)
        done = zip(trajectories, each(make, trajectories), strict=True)
        for trajectory, _ in progress(done, desc=f"trajectories of {origin.slug}", total=len(trajectories)):
            for track in tracks:
                manifest = f"{trajectory}/{track}/manifest.json"
                made[manifest] = sha256_file(folder / manifest)
        write_json(folder / "manifest.json", {"code": code, **described, "trajectories": made})


_source = functools.lru_cache(maxsize=1)(load)


def _one_trajectory(
    out: Path,
    origin: Origin,
    tracks: Sequence[Track],
    pretraining: Recipe,
    settings: Forgetting,
    described: Mapping[str, Any],
    device: str,
    trajectory: str,
) -> None:
    folder = out / trajectory
    if all((folder / track / "manifest.json").is_file() for track in tracks):
        return  # finished before an interruption
    seed = stream("source", origin.source, origin.network, trajectory)
    dataset = _source(origin.source, device=device)
    fresh = build(origin.network, dataset.shape, len(dataset.classes), seed=stream(seed, "initialisation"))
    initial = _copy(fresh)
    model = fresh.to(device)

    def pretrain(split: Split, recipe: Recipe, after_step: Callable | None = None) -> tuple[State, dict | None]:
        model.load_state_dict(initial)
        outcome = train(model, dataset, split, recipe, seed=stream(seed, "pretraining"), after_step=after_step)
        _demand_finite(outcome, f"pretraining of {origin.slug}, {trajectory}")
        return _copy(model), outcome.optimizer

    def larger(factor: int) -> Split:
        """D0, or the subset of the source that holds it and is `factor` times as large."""
        if factor * settings.d0 == 1:
            return dataset.train
        (index,) = nested_subsets(len(dataset.train), seed=stream(seed, "D0"), fractions=[factor * settings.d0])
        return dataset.train.take(index)

    d0 = larger(1)
    oracle, oracle_optimizer = pretrain(larger(2), pretraining)

    def describe(model: nn.Module, index: list[int]) -> dict[str, float]:
        """Source test accuracy, and accuracy on what was left out: D0 without the subset, now and by theta_0."""
        facts = {"test_accuracy": round(accuracy(model, dataset, dataset.test), 6)}
        if len(index) == len(d0):
            return facts
        left_out = torch.ones(len(d0), dtype=torch.bool)
        left_out[index] = False
        rest = d0.take(left_out.nonzero()[:, 0])
        facts["left_out_accuracy"] = round(accuracy(model, dataset, rest), 6)
        facts["left_out_accuracy_theta_0"] = round(accuracy(theta_0, dataset, rest), 6)
        return facts

    for track in tracks:
        fit = _Fit(dataset, settings, stream(seed, track))
        references = {"scratch": initial, "oracle": oracle}
        averages = _Averages(model)  # of the run that makes theta_0
        if track == "overflow":
            steps = pretraining.epochs * steps_per_epoch(len(d0), pretraining.batch_size)
            references["oracle_steps"] = pretrain(larger(2), pretraining.model_copy(update={"steps": steps}))[0]
            for factor in (factor for factor in (4, 8) if factor * settings.d0 <= 1):
                references[f"oracle_x{factor}"] = pretrain(larger(factor), pretraining)[0]
            fit.optimizer = pretrain(d0, pretraining, averages.after_step)[1]
        else:
            model.load_state_dict(oracle)
            fit.optimizer = oracle_optimizer
            fit(model, d0, averages.after_step)  # theta_0 is theta_{-1} after the first forgetting step
        theta_0 = copy.deepcopy(model)
        references |= averages.states()
        references["compute_matched"] = _compute_matched(theta_0, dataset, d0, settings, fit, stream(seed, track))
        forget(
            model,
            d0,
            fit,
            rate=settings.rate,
            length=settings.length,
            seed=stream(seed, "subsets"),
            out=folder / track,
            describe=describe,
            references=references,
            facts={**described, "track": track, "trajectory": trajectory, "source_seed": seed},
        )


def _compute_matched(
    theta_0: nn.Module, dataset: Dataset, d0: Split, settings: Forgetting, fit: _Fit, seed: int
) -> State:
    """theta_0 trained on D0, in the manner of the forgetting steps, for as many steps as all of them take together.

    In epochs of D0: (r + ... + r^(S-1)) times the epochs per step, 0.94 at r = 0.5, S = 5.
    """
    step, sizes = settings.step, [round(len(d0) * settings.rate**k) for k in range(1, settings.length)]
    steps = sum(step.steps or step.epochs * steps_per_epoch(size, step.batch_size) for size in sizes)
    model, state = copy.deepcopy(theta_0), fit.optimizer if settings.carry_optimizer else None
    recipe = settings.step.model_copy(update={"steps": steps})
    outcome = train(model, dataset, d0, recipe, seed=stream(seed, "compute_matched"), optimizer_state=state)
    _demand_finite(outcome, "further training of theta_0 (compute_matched)")
    return _copy(model)


def _demand_finite(outcome: Outcome, what: str) -> None:
    """A trajectory cannot go on from weights that are not finite."""
    if outcome.status != "ok":
        rate = outcome.history[-1]["learning_rate"]
        raise KnowError(f"{what} {outcome.status} (loss not finite) at learning rate {rate:g}; lower it")


def _refuse_other_content(out: Path) -> None:
    """A finished run replaces what stands at `out`: that must be a trajectory, an empty folder, or nothing."""
    if out.exists() and not (out / "manifest.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise KnowError(f"{out} exists and is no trajectory; name a new folder")


def _source_of(fit: Callable) -> str:
    """What can be known of a training function: its source text, so that a changed one is not resumed."""
    try:
        return digest(inspect.getsource(fit if inspect.isroutine(fit) else type(fit)))
    except (OSError, TypeError):
        return getattr(fit, "__qualname__", type(fit).__qualname__)


def _hash_weights(model: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
