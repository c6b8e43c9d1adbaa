"""The meta-set: forgetting trajectories of small networks, whose windows train KNOWN (`benchmarks.metatraining`).

Paper: 7 snapshots per run give two windows of 5 inputs and 1 target; r from U(0.3, 0.9), learning rate from
U(1e-5, 4e-3), batch size from U(32, r^6 |D0|), Adam. Here r has the further lower bound that keeps `smallest` images in
the smallest subset, and the batch size is drawn, between the paper's bounds, so that the logarithm of the number of
updates in a step is uniform.
"""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor, nn

from benchmarks.data import Dataset, load
from benchmarks.networks import build
from benchmarks.progress import progress
from benchmarks.settings import MetaTraining, Recipe
from benchmarks.stacked import Stacked
from benchmarks.store import LOADING, Store, computing, link_files
from benchmarks.training import steps_per_epoch, train
from know.checkpoints import State, save_state
from know.errors import KnowError
from know.files import sha256_file, write_json
from know.fingerprint import code_hash
from know.roles import PREDICTED, roles
from know.seeds import stream
from know.subsets import nested_subsets

METASET, TRAJECTORY = "benchmarks.metaset:make_metaset", "benchmarks.metaset:_make_group"
"""The functions from which the fingerprints of code are made."""
SNAPSHOTS = 7
WINDOWS = 2
"""Number of windows cut from one history (paper); there is only one where S is 6."""
DRAWN = 7
"""Number of settings that are drawn from a Sobol sequence."""


def draw_run(run: int, settings: MetaTraining, sizes: Mapping[str, int]) -> dict:
    """The random settings of meta-trajectory number `run`; they depend only on it, on the ranges and on the sizes.

    Of every network the runs are points of a Sobol sequence, so that r, the number of updates in a step and whatever
    else is drawn fill their ranges together and no corner stays empty. Half of the trainings of theta_0 go on at the
    constant learning rate of the forgetting steps: such weights are still learning. The other half bring theta_0 to
    rest, from a rate of their own that falls to 0 along a cosine.

    sizes: number of training images by dataset. A run takes one of those that are large enough for its r.
    Runs that are trained at once all have the same settings but learning rates and seeds.
    """
    network, number = _network(run // settings.together, settings)
    ratio_at, updates_at, images_at, at_rest, data_at, epochs_at, longer_at = _point(network, number)
    low, high = settings.ratio
    largest = max(sizes[name] for name in settings.datasets)
    low = max(low, (settings.smallest / largest) ** (1 / (SNAPSHOTS - 1)))
    if low > high:
        raise KnowError(
            f"metatraining: {largest} images keep {settings.smallest} in the smallest of {SNAPSHOTS} "
            f"subsets only with a ratio above {low:.2f}, but ratio ends at {high:g}"
        )
    ratio = low + (high - low) * ratio_at
    least = max(settings.images, round(settings.smallest / ratio ** (SNAPSHOTS - 1)))
    dataset = _chosen([name for name in settings.datasets if sizes[name] >= least], data_at)
    images = round(_between((least, sizes[dataset]), images_at))
    smallest = round(images * ratio ** (SNAPSHOTS - 1))
    epochs = _chosen(range(settings.forgetting_epochs[0], settings.forgetting_epochs[1] + 1), epochs_at)
    fewest, most = settings.pretraining_epochs
    most = max(1, min(most, settings.pretraining_images // images))
    batches = sorted((settings.batch_size, smallest))
    shown = epochs * round(images * ratio)
    least_updates, most_updates = shown / batches[1], shown / batches[0]
    updates = [min(max(bound, least_updates), most_updates) for bound in settings.step_updates]
    batch_size = min(max(round(shown / _between(updates, updates_at)), batches[0]), batches[1])
    dice = random.Random(stream("metaset", run))
    rate, own_rate = dice.uniform(*settings.learning_rate), dice.uniform(*settings.learning_rate)
    return {
        "dataset": dataset,
        "network": network,
        "ratio": ratio,
        "images": images,
        "smallest": smallest,
        "batch_size": batch_size,
        "updates": epochs * steps_per_epoch(round(images * ratio), batch_size),
        "forgetting_epochs": epochs,
        "pretraining_epochs": _chosen(range(min(fewest, most), most + 1), longer_at),
        "pretraining_schedule": "cosine" if at_rest < 0.5 else "constant",
        "pretraining_rate": own_rate if at_rest < 0.5 else rate,
        "learning_rate": rate,
        "seed": stream("metaset", run, "training"),
    }


def _network(group: int, settings: MetaTraining) -> tuple[str, int]:
    """The network of a group of runs that are trained at once, and the number of the group among those of it."""
    return settings.networks[group % len(settings.networks)], group // len(settings.networks)


def _point(network: str, number: int) -> list[float]:
    """Point `number` of the network's own scrambled Sobol sequence, each coordinate in [0, 1)."""
    sequence = qmc.Sobol(DRAWN, rng=np.random.default_rng(stream("metaset", network)))
    return sequence.random_base2(number.bit_length())[number].tolist()


def _between(bounds: Sequence[float], at: float) -> float:
    """The value at a share `at` of the way between two bounds, on a logarithmic scale."""
    low, high = bounds
    return low * (high / low) ** at


def _chosen(choices: Sequence[Any], at: float) -> Any:
    """The choice at a share `at`, in [0, 1), of the way through them."""
    return choices[int(at * len(choices))]


def histories(states: list[State], limit: int, seed: int) -> dict[str, Tensor]:
    """Histories of single weights, by predicted role: float32 (N, 7), smallest subset first.

    states: the 7 snapshots, largest subset (theta_0) first. Of each role at most `limit` weights are drawn, uniformly.
    """
    role_of = roles(states[0])
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for role in PREDICTED:
        names = sorted(name for name in states[0] if role_of[name] == role)
        if not names:
            continue
        # history is (scalars, 7), smallest subset first
        history = torch.stack([torch.cat([s[n].flatten().float() for n in names]) for s in reversed(states)], dim=1)
        kept[role] = history[torch.randperm(len(history), generator=generator)[:limit]].contiguous()
    return kept


def windows(history: Tensor, length: int) -> Tensor:
    """Cut histories (N, 7) into windows with target, (windows, S + 1): inputs smallest subset first, target last.

    Each history gives its last two windows: theta_{S+1}..theta_2 -> theta_1 and theta_S..theta_1 -> theta_0.
    """
    count = min(WINDOWS, SNAPSHOTS - length)
    return torch.cat([history[:, end - length - 1 : end] for end in range(SNAPSHOTS - count + 1, SNAPSHOTS + 1)])


def make_metaset(shard: int, settings: MetaTraining, *, store: Store, out: Path, device: str = "cpu") -> None:
    """Train one shard of the meta-trajectories: their histories as `<out>/<run>.safetensors`, then a manifest.

    store: they are kept there, and `out` has links to them; what any meta-set has put there is not trained again.
    """
    groups = -(-settings.trajectories // settings.together)
    first, end = (groups * k // settings.shards * settings.together for k in (shard, shard + 1))
    runs = range(first, min(end, settings.trajectories))
    datasets = {name: load(name, device=device) for name in settings.datasets}
    for name, dataset in datasets.items():
        if len(dataset.train) < settings.images:
            raise KnowError(f"metatraining.images is {settings.images}, but {name} has {len(dataset.train)} images")
    data = {name: dataset.sha256 for name, dataset in datasets.items()}
    sizes = {name: len(dataset.train) for name, dataset in datasets.items()}
    decided = {"windows": settings.windows, "carry_optimizer": settings.carry_optimizer}
    decided |= computing(code_hash(TRAJECTORY, LOADING), device)
    shutil.rmtree(out, ignore_errors=True)
    files = {}
    for start in progress(range(runs.start, runs.stop, settings.together), desc=f"meta-trajectories, shard {shard}"):
        group = {
            _file(run): {**draw_run(run, settings, sizes), "run": run}
            for run in range(start, min(start + settings.together, runs.stop))
        }
        dataset = datasets[next(iter(group.values()))["dataset"]]
        about = {"drawn": list(group.values()), "data": dataset.sha256, **decided}
        make = functools.partial(_make_group, group, dataset, settings.windows, settings.carry_optimizer)
        made = store.folder("meta-trajectories", about, max(group), make)
        link_files(made, out, sorted(group))
        files |= {name: sha256_file(out / name) for name in group}
    write_json(out / "manifest.json", {"code": code_hash(METASET), "data": data, "files": files})


def _file(run: int) -> str:
    return f"{run:05d}.safetensors"


def _make_group(group: Mapping[str, dict], dataset: Dataset, windows: int, carry: bool, out: Path) -> None:
    """Train the trajectories of runs that are trained at once, and write their histories.

    It is given no `MetaTraining`, whose other settings are no part of the code that makes trajectories.
    """
    make = _meta_trajectories if len(group) > 1 else _meta_trajectory
    every = make(list(group.values()), dataset, carry)
    for (name, facts), states in zip(group.items(), every, strict=True):
        limit, seed = max(1, windows // WINDOWS), stream(facts["seed"], "windows")
        status = "ok" if states else "diverged"
        save_state(out / name, histories(states, limit, seed) if states else {}, {**facts, "status": status})


def _meta_trajectory(drawn: list[dict], dataset: Dataset, carry: bool) -> list[list[State] | None]:
    """Snapshots theta_0 ... theta_6 of the one run that was drawn (paper: sequential fine-tuning on nested subsets), or
    None if the run diverged.
    """
    (facts,) = drawn
    model, subsets = _start(facts, dataset)
    states, optimizer = [], None
    for k, index in enumerate(subsets):
        recipe, split = _recipe(facts, k), dataset.train.take(index)
        outcome = train(model, dataset, split, recipe, seed=stream(facts["seed"], "step", k), optimizer_state=optimizer)
        if outcome.status != "ok":
            return [None]
        optimizer = outcome.optimizer if carry else None
        states.append({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()})
    return [states]


def _meta_trajectories(drawn: list[dict], dataset: Dataset, carry: bool) -> list[list[State] | None]:
    """Do what `_meta_trajectory` does for several runs at once, which differ in subsets, learning rate and seeds."""
    models, subsets = zip(*(_start(facts, dataset) for facts in drawn), strict=True)
    networks, fine = Stacked(models), [True] * len(drawn)
    states: list[list[State]] = [[] for _ in drawn]
    for k in range(SNAPSHOTS):
        outcomes = networks.train(
            dataset,
            dataset.train,
            torch.tensor([own[k] for own in subsets]),
            _recipe(drawn[0], k),
            seeds=[stream(facts["seed"], "step", k) for facts in drawn],
            learning_rates=[_recipe(facts, k).learning_rate for facts in drawn],
            carry=carry and k > 0,
        )
        fine = [before and outcome.status == "ok" for before, outcome in zip(fine, outcomes, strict=True)]
        for own, state in zip(states, networks.states(), strict=True):
            own.append({name: tensor.cpu() for name, tensor in state.items()})
    return [own if good else None for own, good in zip(states, fine, strict=True)]


def _start(facts: dict, dataset: Dataset) -> tuple[nn.Module, list[list[int]]]:
    """The freshly initialised network of a run, and its nested subsets, largest first."""
    fractions = [facts["images"] / len(dataset.train) * facts["ratio"] ** k for k in range(SNAPSHOTS)]
    seed = stream(facts["seed"], "initialisation")
    model = build(facts["network"], dataset.shape, len(dataset.classes), seed=seed).to(dataset.mean.device)
    return model, nested_subsets(len(dataset.train), seed=stream(facts["seed"], "subsets"), fractions=fractions)


def _recipe(facts: dict, step: int) -> Recipe:
    """Training of theta_0 where step is 0, else of a forgetting step."""
    kind = "forgetting" if step else "pretraining"
    schedule = "constant" if step else facts["pretraining_schedule"]
    rate = facts["learning_rate" if step else "pretraining_rate"]
    own = {"epochs": facts[f"{kind}_epochs"], "schedule": schedule, "learning_rate": rate}
    return Recipe(**own, batch_size=facts["batch_size"])
