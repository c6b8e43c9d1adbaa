"""Meta-training of KNOWN: an L1 regression on windows, which are cut from forgetting trajectories of small networks.

The same windows train two more methods, so that KNOWN can be compared with them: scaled KNOWN, and meta-linear, the
closed-form least-squares solution over the differences.

Paper: 7 snapshots per run give two windows of 5 inputs and 1 target; r from U(0.3, 0.9), learning rate from
U(1e-5, 4e-3), batch size from U(32, r^6 |D0|), Adam. Here r has the further lower bound that keeps `smallest` images in
the smallest subset. The paper does not state epochs and optimiser of the hyper-model: those are keys of a suite.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import jinja2
import torch
from torch import Tensor, nn

from benchmarks.data import Dataset, load
from benchmarks.networks import build
from benchmarks.progress import progress
from benchmarks.settings import LENGTH, MetaTraining, Recipe, family
from benchmarks.stacked import Stacked
from benchmarks.store import computing
from benchmarks.training import train
from know.checkpoints import State, load_facts, load_state, save_state
from know.errors import KnowError
from know.files import digest, read_json, resumable_folder, sha256_file, write_csv, write_json, write_text
from know.fingerprint import code_hash
from know.known import Known, KnownNet, Scaling, scale_windows
from know.roles import PREDICTED, roles
from know.seeds import stream
from know.subsets import nested_subsets

METASET, METATRAINING = "benchmarks.metatraining:make_metaset", "benchmarks.metatraining:fit_known"
"""The functions from which the fingerprints of code are made."""
SNAPSHOTS = 7
WINDOWS = 2
"""Number of windows cut from one history (paper); there is only one where S is 6."""
HISTORY = ["model", "role", "update", "training_loss", "selection_loss", "no_change_loss", "linear_loss"]
COEFFICIENTS = ["model", "role", "term", "value"]
HELD_OUT = ["run", "dataset", "network", "role", "model", "windows", "loss", "no_change_loss", "linear_loss", "step"]
CARD = Path(__file__).parent / "report" / "templates" / "known_card.md.j2"
"""Template of the card of a group of networks."""
STILL = 1e-3
"""The card says that a network predicts no change where its |step| / |theta_0| is smaller than this."""
NETWORKS: dict[str, Scaling] = {"known": "none", "scaled": "range"}
"""The networks that are trained, each once per role, and how their windows are scaled."""
META_LINEAR = {"meta_linear": ("", False), "meta_linear_theta0": (".theta_0", True)}
"""The closed-form models: the ending of the names of their coefficients, and whether theta_0 has a coefficient."""


def draw_run(run: int, settings: MetaTraining) -> dict:
    """The random settings of meta-trajectory number `run`; they depend only on `run` and the ranges in the settings.

    Runs that are trained at once all use what the first of them draws, except for learning rate and seed.
    """
    group = run // settings.together
    first, own = _dice(group * settings.together, settings), _dice(run, settings)
    return {
        "dataset": settings.datasets[group % len(settings.datasets)],
        "network": settings.networks[group // len(settings.datasets) % len(settings.networks)],
        **first,
        "learning_rate": own["learning_rate"],
        "seed": stream("metaset", run, "training"),
    }


def _dice(run: int, settings: MetaTraining) -> dict:
    dice = random.Random(stream("metaset", run))
    low, high = settings.ratio
    low = max(low, (settings.smallest / settings.images) ** (1 / (SNAPSHOTS - 1)))
    if low > high:
        raise KnowError(
            f"metatraining: {settings.images} images keep {settings.smallest} in the smallest of {SNAPSHOTS} subsets "
            f"only with a ratio above {low:.2f}, but ratio ends at {high:g}"
        )
    ratio = dice.uniform(low, high)
    smallest = round(settings.images * ratio ** (SNAPSHOTS - 1))
    return {
        "ratio": ratio,
        "learning_rate": dice.uniform(*settings.learning_rate),
        "batch_size": dice.randint(*sorted((settings.batch_size, smallest))),
        "pretraining_epochs": dice.randint(*settings.pretraining_epochs),
        "smallest": smallest,
    }


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


def make_metaset(shard: int, settings: MetaTraining, *, out: Path, device: str = "cpu") -> None:
    """Train one shard of the meta-trajectories and save their histories: `<out>/<run>.safetensors`, then manifest."""
    groups = -(-settings.trajectories // settings.together)
    first, end = (groups * k // settings.shards * settings.together for k in (shard, shard + 1))
    runs = range(first, min(end, settings.trajectories))
    datasets = {name: load(name, device=device) for name in settings.datasets}
    for name, dataset in datasets.items():
        if len(dataset.train) < settings.images:
            raise KnowError(f"metatraining.images is {settings.images}, but {name} has {len(dataset.train)} images")
    data = {name: dataset.sha256 for name, dataset in datasets.items()}
    code = code_hash(METASET)
    fingerprint = digest([shard, settings.model_dump(), data, computing(code, device)])
    with resumable_folder(out, fingerprint, replace=True) as folder:
        files = {}
        for run in progress(runs, desc=f"meta-trajectories, shard {shard}"):
            path = folder / f"{run:05d}.safetensors"
            if not path.is_file():
                group = range(run, min(runs.stop, (run // settings.together + 1) * settings.together))
                drawn = [draw_run(one, settings) for one in group]
                make = _meta_trajectories if settings.together > 1 else _meta_trajectory
                for one, own, states in zip(
                    group, drawn, make(drawn, datasets[drawn[0]["dataset"]], settings), strict=True
                ):
                    limit, seed = max(1, settings.windows // WINDOWS), stream(own["seed"], "windows")
                    facts = {**own, "run": one, "status": "ok" if states else "diverged"}
                    save_state(
                        folder / f"{one:05d}.safetensors", histories(states, limit, seed) if states else {}, facts
                    )
            files[path.name] = sha256_file(path)
        write_json(folder / "manifest.json", {"code": code, "data": data, "files": files})


def _meta_trajectory(drawn: list[dict], dataset: Dataset, settings: MetaTraining) -> list[list[State] | None]:
    """Snapshots theta_0 ... theta_6 of the one run that was drawn (paper: sequential fine-tuning on nested subsets), or
    None if the run diverged.
    """
    (facts,) = drawn
    model, subsets = _start(facts, dataset, settings)
    states, optimizer = [], None
    for k, index in enumerate(subsets):
        recipe, split = _recipe(facts, settings, k), dataset.train.take(index)
        outcome = train(model, dataset, split, recipe, seed=stream(facts["seed"], "step", k), optimizer_state=optimizer)
        if outcome.status != "ok":
            return [None]
        optimizer = outcome.optimizer if settings.carry_optimizer else None
        states.append({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()})
    return [states]


def _meta_trajectories(drawn: list[dict], dataset: Dataset, settings: MetaTraining) -> list[list[State] | None]:
    """Do what `_meta_trajectory` does for several runs at once, which differ in subsets, learning rate and seeds."""
    models, subsets = zip(*(_start(facts, dataset, settings) for facts in drawn), strict=True)
    networks, fine = Stacked(models), [True] * len(drawn)
    states: list[list[State]] = [[] for _ in drawn]
    for k in range(SNAPSHOTS):
        outcomes = networks.train(
            dataset,
            dataset.train,
            torch.tensor([own[k] for own in subsets]),
            _recipe(drawn[0], settings, k),
            seeds=[stream(facts["seed"], "step", k) for facts in drawn],
            learning_rates=[facts["learning_rate"] for facts in drawn],
            carry=k > 0 and settings.carry_optimizer,
        )
        fine = [before and outcome.status == "ok" for before, outcome in zip(fine, outcomes, strict=True)]
        for own, state in zip(states, networks.states(), strict=True):
            own.append({name: tensor.cpu() for name, tensor in state.items()})
    return [own if good else None for own, good in zip(states, fine, strict=True)]


def _start(facts: dict, dataset: Dataset, settings: MetaTraining) -> tuple[nn.Module, list[list[int]]]:
    """The freshly initialised network of a run, and its nested subsets, largest first."""
    fractions = [settings.images / len(dataset.train) * facts["ratio"] ** k for k in range(SNAPSHOTS)]
    seed = stream(facts["seed"], "initialisation")
    model = build(facts["network"], dataset.shape, len(dataset.classes), seed=seed).to(dataset.mean.device)
    return model, nested_subsets(len(dataset.train), seed=stream(facts["seed"], "subsets"), fractions=fractions)


def _recipe(facts: dict, settings: MetaTraining, step: int) -> Recipe:
    epochs = settings.forgetting_epochs if step else facts["pretraining_epochs"]
    return Recipe(epochs=epochs, learning_rate=facts["learning_rate"], batch_size=facts["batch_size"])


def fit_known(
    shards: Iterable[Path],
    settings: MetaTraining,
    *,
    length: int = LENGTH,
    without: Collection[str] = (),
    out: Path,
    device: str = "cpu",
) -> Known:
    """Train all networks and coefficients on the windows of all shards, for histories of S = `length` snapshots.

    without: families of datasets (`benchmarks.settings.family`) whose trajectories are left out.

    Writes into `out`: known.safetensors and scaled.safetensors (see `Known`), meta_linear.safetensors and its numbers
    as meta_linear.csv, history.csv of the training, held_out.csv, facts.json, and README.md, a card made from them.

    Of the trajectories that did not diverge, every k-th is set apart for selection, and every k-th for reporting. A
    role stops when its loss on the selection has not improved for `patience` evaluations; its best weights are kept.
    The reported errors are those on the held-out trajectories, which are used for nothing else.
    """
    paths = [Path(shard).parent / name for shard in shards for name in read_json(shard)["files"]]
    every = {path: load_facts(path) for path in sorted(paths, key=lambda path: path.name)}  # the same for any shards
    runs = {path: facts for path, facts in every.items() if family(facts["dataset"]) not in without}
    good = {path: facts for path, facts in runs.items() if facts["status"] == "ok"}
    parts = _split(good, settings)
    if not all(parts.values()):
        raise KnowError(f"only {len(good)} of {len(runs)} meta-trajectories did not diverge; none can be held out")
    cut = {path: {role: windows(h, length) for role, h in load_state(path).items()} for path in good}

    def of(part: str, role: str) -> Tensor:  # (N, S + 1)
        histories_of = [cut[path][role] for path in parts[part] if role in cut[path]]
        if not histories_of:
            raise KnowError(f"metatraining: no windows of role {role}; add a network that has such tensors")
        return torch.cat(histories_of).to(device)

    facts = {
        "data": sorted({facts["dataset"] for facts in runs.values()}),
        "networks": sorted({facts["network"] for facts in runs.values()}),
        "trajectories": {part: len(paths) for part, paths in parts.items()} | {"diverged": len(runs) - len(good)},
        "settings": settings.model_dump(mode="json"),
        "code": code_hash(METATRAINING),
    }
    steps: dict[str, Callable[[Tensor, str], Tensor]] = {}
    trained, history = {}, []
    for model, scaling in NETWORKS.items():
        nets = {}
        for role in PREDICTED:
            net, rows = _fit_role(model, role, of("training", role), of("selection", role), settings)
            nets[role], history = net.cpu(), history + rows
        trained[model] = Known(nets, {"scaling": scaling})
        steps[model] = trained[model].residual
    coefficients, numbers = {}, []
    for model, (ending, with_theta_0) in META_LINEAR.items():
        solved = {role: _least_squares(of("training", role), with_theta_0=with_theta_0) for role in PREDICTED}
        coefficients |= {role + ending: values.float() for role, values in solved.items()}
        names = [*(f"difference {k}" for k in range(1, length)), "theta_0"]
        numbers += [
            {"model": model, "role": role, "term": term, "value": f"{value:.6g}"}
            for role, values in solved.items()
            for term, value in zip(names, values.tolist(), strict=False)
        ]
        steps[model] = functools.partial(_closed_form, solved, with_theta_0)
    if settings.beside:
        steps["shipped"] = Known.pretrained(settings.beside, length).residual
    errors = [row for path in parts["held_out"] for row in _errors(good[path], cut[path], steps)]
    for model, network in trained.items():
        network.facts |= {**facts, "model": model, "held_out": _means(errors, model)}
        network.save(out / f"{model}.safetensors")
    save_state(out / "meta_linear.safetensors", coefficients, facts)
    write_csv(out / "history.csv", history, HISTORY)
    write_csv(out / "meta_linear.csv", numbers, COEFFICIENTS)
    write_csv(out / "held_out.csv", errors, HELD_OUT)
    write_json(out / "facts.json", {**facts, "length": length, "without": sorted(without)})
    write_text(out / "README.md", card(trained["known"]))
    return trained["known"]


def _split(good: Mapping[Path, dict], settings: MetaTraining) -> dict[str, list[Path]]:
    """Training, selection and held-out trajectories. The last two are taken evenly from every dataset and network; a
    plain stride over the runs might miss some of them, since datasets and networks alternate from run to run.
    """
    by_kind = sorted(good, key=lambda path: (good[path]["dataset"], good[path]["network"], path.name))
    stride = max(3, round(1 / settings.held_out))
    selection, held_out = by_kind[stride - 1 :: stride], by_kind[stride - 2 :: stride]
    training = [path for path in good if path not in {*selection, *held_out}]
    return {"training": training, "selection": selection, "held_out": held_out}


def _linear_terms(window: Tensor, with_theta_0: bool) -> Tensor:
    """The terms of meta-linear, float64 (N, S - 1 or S): differences of windows (N, S), oldest first, then theta_0."""
    window = window.double().cpu()  # only the CPU has a driver that works for any rank
    differences = window.diff(dim=1)
    return torch.cat([differences, window[:, -1:]], dim=1) if with_theta_0 else differences


def _least_squares(rows: Tensor, *, with_theta_0: bool) -> Tensor:
    """Coefficients, float64 (S - 1 or S,), of `_linear_terms` for the step, from windows with target (N, S + 1)."""
    step = (rows[:, -1:] - rows[:, -2:-1]).double().cpu()
    return torch.linalg.lstsq(_linear_terms(rows[:, :-1], with_theta_0), step, driver="gelsd").solution[:, 0]


def _closed_form(solved: Mapping[str, Tensor], with_theta_0: bool, window: Tensor, role: str) -> Tensor:
    """The step (N,) that meta-linear predicts."""
    return (_linear_terms(window, with_theta_0) @ solved[role]).float()


def _errors(
    facts: dict, cut: Mapping[str, Tensor], steps: Mapping[str, Callable[[Tensor, str], Tensor]]
) -> Iterator[dict]:
    """Rows with the columns `HELD_OUT` for one trajectory: by role and model, the mean absolute error of the predicted
    weights and the size of the step.
    """
    for role, rows in cut.items():
        window, truth = rows[:, :-1], rows[:, -1]
        theta_0, linear = window[:, -1], 2 * window[:, -1] - window[:, -2]
        plain = {"no_change_loss": theta_0 - truth, "linear_loss": linear - truth}
        shared = {name: f"{float(error.abs().mean()):.4g}" for name, error in plain.items()}
        place = {"run": facts["run"], "dataset": facts["dataset"], "network": facts["network"], "role": role}
        for model, ask in steps.items():
            step = ask(window, role)
            loss, size = (theta_0 + step - truth).abs().mean(), step.norm() / theta_0.norm().clamp_min(1e-30)
            own = {"model": model, "loss": f"{float(loss):.4g}", "step": f"{float(size):.4g}"}
            yield {**place, "windows": len(rows), **shared, **own}


def _means(errors: list[dict], model: str) -> dict[str, dict[str, float]]:
    """Means over the held-out trajectories, by role; each trajectory has the same weight."""
    means = {}
    for role in PREDICTED:
        rows = [row for row in errors if (row["model"], row["role"]) == (model, role)]
        if not rows:
            raise KnowError(f"metatraining: no held-out windows of role {role}; add trajectories")
        names = ("loss", "no_change_loss", "linear_loss", "step")
        means[role] = {name: float(f"{sum(float(row[name]) for row in rows) / len(rows):.4g}") for name in names}
    return means


def card(known: Known) -> str:
    """The card of a trained KNOWN, in Markdown, from the facts in its file."""
    # an environment of its own, so that the layout of other pages is no part of the code that makes the networks
    template = jinja2.Template(
        CARD.read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    size = sum(parameter.numel() for parameter in known.nets["conv"].parameters())
    settings = known.facts["settings"]
    settings = {**settings, "ratio": settings.get("ratio") or settings["rate"]}  # the first shipped files call it rate
    about = {"facts": known.facts, "settings": settings, "length": known.length, "size": size}
    return template.render(about, roles=PREDICTED, still=STILL) + "\n"


def _fit_role(
    model: str, role: str, kept: Tensor, selection: Tensor, settings: MetaTraining
) -> tuple[KnownNet, list[dict]]:
    """Train one network on windows with targets (N, S + 1).

    Returns it with the weights that were best on the selection, and rows with the columns `HISTORY`. The loss is always
    in the units of the weights: a scaled step is scaled back before its error is computed.
    """
    length = kept.shape[1] - 1
    seed = stream("metatrain", model, role)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = KnownNet(length).to(kept.device)
    generator = torch.Generator(device=kept.device).manual_seed(stream(seed, "batches"))
    optimizer = torch.optim.Adam(net.parameters(), settings.optimizer_rate, fused=True)
    no_change = float((selection[:, -2] - selection[:, -1]).abs().mean())
    linear = float((2 * selection[:, -2] - selection[:, -3] - selection[:, -1]).abs().mean())
    (inputs, factors), steps = scale_windows(kept[:, :-1], NETWORKS[model]), kept[:, -1] - kept[:, -2]
    selection_inputs, selection_factors = scale_windows(selection[:, :-1], NETWORKS[model])
    selection_steps = selection[:, -1] - selection[:, -2]
    interval = max(1, settings.updates // settings.evaluations)
    best, best_state, waited, rows = math.inf, None, 0, []
    running = torch.zeros((), device=kept.device)
    bar = progress(range(1, settings.updates + 1), desc=f"{model}, {role}", leave=False)
    for update in bar:
        drawn = torch.randint(len(kept), (settings.window_batch,), generator=generator, device=kept.device)
        error = (net(inputs[drawn]) * factors[drawn] - steps[drawn]).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        (error + net.penalty(settings.bias_penalty)).backward()
        optimizer.step()
        running += error.detach()
        if update % interval:
            continue
        with torch.no_grad():
            answers = torch.cat([net(part) for part in selection_inputs.split(16384)]) * selection_factors
        loss = float((answers - selection_steps).abs().mean())
        row = (model, role, update, float(running) / interval, loss, no_change, linear)
        rows.append(
            {k: v if isinstance(v, str | int) else float(f"{v:.6g}") for k, v in zip(HISTORY, row, strict=True)}
        )
        running.zero_()
        if loss < best:
            best, waited = loss, 0
            best_state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        else:
            waited += 1
        bar.set_postfix(selection=f"{loss:.3g}", no_change=f"{no_change:.3g}")
        if waited >= settings.patience or not math.isfinite(loss):
            break
    if best_state is None:
        raise KnowError(f"meta-training of role {role} gave no finite loss; lower metatraining.optimizer_rate")
    net.load_state_dict(best_state)
    return net, rows
