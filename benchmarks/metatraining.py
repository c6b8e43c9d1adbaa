"""Meta-training of KNOWN: an L1 regression on the windows of the meta-set (`benchmarks.metaset`).

The same windows train two more methods, so that KNOWN can be compared with them: scaled KNOWN, and meta-linear, the
closed-form least-squares solution over the differences. The paper does not state epochs and optimiser of the
hyper-model: a suite gives them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.metaset import windows
from benchmarks.progress import progress
from benchmarks.settings import LENGTH, MetaTraining, family, variants
from know.checkpoints import load_facts, load_state, save_state
from know.errors import KnowError, unknown
from know.files import read_json, write_csv, write_json
from know.fingerprint import code_hash
from know.known import Known, KnownNet, Scaling, scale_windows
from know.roles import PREDICTED
from know.seeds import stream

METATRAINING = "benchmarks.metatraining:fit_known"
"""The function from which the fingerprint of code is made."""
HISTORY = ["model", "role", "update", "training_loss", "selection_loss", "no_change_loss", "linear_loss"]
COEFFICIENTS = ["model", "role", "term", "value"]
HELD_OUT = ["run", "dataset", "network", "ratio", "updates", "role", "model"]
HELD_OUT += ["windows", "loss", "no_change_loss", "linear_loss", "step"]
VARIANTS = ["variant", "part", "run", "network", "role", "loss", "no_change_loss"]
DRAWN = ["ratio", "updates", "images", "smallest", "batch_size", "learning_rate"]
"""What the card says of the draws: the least and the most that were drawn."""
NETWORKS: dict[str, Scaling] = {"known": "none", "scaled": "range"}
"""The networks that are trained, each once per role, and how their windows are scaled."""
META_LINEAR = {"meta_linear": ("", False), "meta_linear_theta0": (".theta_0", True)}
"""The closed-form models: the ending of the names of their coefficients, and whether theta_0 has a coefficient."""


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
    as meta_linear.csv, history.csv of the training, held_out.csv and facts.json. The card is made from the last two
    (`benchmarks.report.pretrained`).

    Of the trajectories that did not diverge, every k-th is set apart for selection, and every k-th for reporting. A
    role stops when its loss on the selection has not improved for `patience` evaluations; its best weights are kept.
    The reported errors are those on the held-out trajectories, which are used for nothing else.
    """
    every = trajectories_of(shards)
    runs = {path: facts for path, facts in every.items() if family(facts["dataset"]) not in without}
    good, parts = _split(runs, settings)
    cut = _cut(good, length, device)
    facts = {
        "data": sorted({facts["dataset"] for facts in runs.values()}),
        "networks": sorted({facts["network"] for facts in runs.values()}),
        "trajectories": {part: len(paths) for part, paths in parts.items()} | {"diverged": len(runs) - len(good)},
        "drawn": {name: [f({own[name] for own in good.values()}) for f in (min, max)] for name in DRAWN},
        "size": sum(parameter.numel() for parameter in KnownNet(length).parameters()),
        "settings": settings.model_dump(mode="json"),
        "code": code_hash(METATRAINING),
    }
    steps: dict[str, Callable[[Tensor, str], Tensor]] = {}
    trained, history = {}, []
    for model, scaling in NETWORKS.items():
        nets = {}
        for role in PREDICTED:
            net, rows = _fit_role(model, role, *(_of(cut, parts[p], role) for p in ("training", "selection")), settings)
            nets[role], history = net.cpu(), history + rows
        trained[model] = Known(nets, {"scaling": scaling})
        steps[model] = trained[model].residual
    coefficients, numbers = {}, []
    training = {role: torch.cat(_of(cut, parts["training"], role)) for role in PREDICTED}
    for model, (ending, with_theta_0) in META_LINEAR.items():
        solved = {role: _least_squares(rows, with_theta_0=with_theta_0) for role, rows in training.items()}
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
    return trained["known"]


def fit_variant(name: str, shards: Iterable[Path], settings: MetaTraining, *, out: Path, device: str = "cpu") -> None:
    """Train KNOWN alone as a variant says, for S = 5, and write its errors on the selection and held-out trajectories,
    or on all trajectories of the network that it leaves out, to the table `out` (columns `VARIANTS`).
    """
    if name not in variants(settings):
        raise unknown("variant of the meta-training", name, variants(settings))
    variant = variants(settings)[name]
    settings = settings.model_copy(update=dict(variant.changes))
    every = trajectories_of(shards)
    good, parts = _split({p: facts for p, facts in every.items() if facts["network"] != variant.network}, settings)
    if variant.network:
        left_out = {p: f for p, f in every.items() if f["network"] == variant.network and f["status"] == "ok"}
        good, parts = {**good, **left_out}, {**parts, "held_out": list(left_out)}
    kept = _in_order(good, parts["training"])[:: round(1 / variant.share)]
    cut = _cut(good, LENGTH, device)
    nets = {}
    for role in PREDICTED:
        net, _ = _fit_role("known", role, _of(cut, kept, role), _of(cut, parts["selection"], role), settings)
        nets[role] = net.cpu()
    steps = {"known": Known(nets).residual}
    rows = [
        {"variant": name, "part": part, **row}
        for part in ("selection", "held_out")
        for path in parts[part]
        for row in _errors(good[path], cut[path], steps)
    ]
    write_csv(out, [{column: row[column] for column in VARIANTS} for row in rows], VARIANTS)


def trajectories_of(shards: Iterable[Path]) -> dict[Path, dict]:
    """What was drawn for every trajectory of the shards, by path, in the order of the runs whatever the shards."""
    paths = [Path(shard).parent / name for shard in shards for name in read_json(shard)["files"]]
    return {path: load_facts(path) for path in sorted(paths, key=lambda path: path.name)}


def _cut(good: Iterable[Path], length: int, device: str) -> dict[Path, dict[str, Tensor]]:
    """The windows with targets (N, S + 1) of every trajectory, by role."""
    return {path: {role: windows(h, length).to(device) for role, h in load_state(path).items()} for path in good}


def _of(cut: Mapping[Path, Mapping[str, Tensor]], paths: Iterable[Path], role: str) -> list[Tensor]:
    """The windows of a role, of each trajectory that has such tensors."""
    kept = [cut[path][role] for path in paths if role in cut[path]]
    if not kept:
        raise KnowError(f"metatraining: no windows of role {role}; add a network that has such tensors")
    return kept


def _in_order(good: Mapping[Path, dict], paths: Iterable[Path]) -> list[Path]:
    """Trajectories by network and r, so that every k-th of them come from all networks and from the range of r."""
    return sorted(paths, key=lambda path: (good[path]["network"], good[path]["ratio"], path.name))


def _split(runs: Mapping[Path, dict], settings: MetaTraining) -> tuple[dict[Path, dict], dict[str, list[Path]]]:
    """The trajectories that did not diverge, and which of them are for training, for selection and held out. The last
    two are taken evenly from every network and from the range of r; a plain stride over the runs might miss a network,
    since networks alternate from run to run. Runs that were trained at once have the same r, data and number of updates
    and stay together, so that none of them tells of another.
    """
    good = {path: facts for path, facts in runs.items() if facts["status"] == "ok"}
    siblings: dict[int, list[Path]] = {}
    for path in _in_order(good, good):
        siblings.setdefault(good[path]["run"] // settings.together, []).append(path)
    groups, stride = list(siblings.values()), max(3, round(1 / settings.held_out))
    selection, held_out = ([path for group in groups[stride - back :: stride] for path in group] for back in (1, 2))
    training = [path for path in good if path not in {*selection, *held_out}]
    parts = {"training": training, "selection": selection, "held_out": held_out}
    if not all(parts.values()):
        raise KnowError(f"only {len(good)} of {len(runs)} meta-trajectories did not diverge; none can be held out")
    return good, parts


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
        rows = rows.cpu()  # the trained networks are there
        window, truth = rows[:, :-1], rows[:, -1]
        theta_0, linear = window[:, -1], 2 * window[:, -1] - window[:, -2]
        plain = {"no_change_loss": theta_0 - truth, "linear_loss": linear - truth}
        shared = {name: f"{float(error.abs().mean()):.4g}" for name, error in plain.items()}
        place = {name: facts[name] for name in ("run", "dataset", "network", "updates")}
        place |= {"ratio": f"{facts['ratio']:.4g}", "role": role}
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


class _Windows:
    """The windows of whole trajectories as one network takes them, and the loss on them.

    trajectories: windows with targets of each trajectory, (N, S + 1). relative: see `MetaTraining.loss`. The error is
    always in the units of the weights: a scaled step is scaled back before it is compared.
    """

    def __init__(self, trajectories: list[Tensor], scaling: Scaling, *, relative: bool):
        rows = torch.cat(trajectories)
        self.inputs, self.factors = scale_windows(rows[:, :-1], scaling)
        self.steps, self.linear = rows[:, -1] - rows[:, -2], rows[:, -2] - rows[:, -3]  # (N,)
        self.weights = torch.ones_like(self.steps)
        if relative:
            own = [_weight(each) for each in trajectories]
            sizes = torch.tensor([len(each) for each in trajectories], device=rows.device)
            # every trajectory has the same share of the mean, whatever its number of windows
            shares = torch.tensor(own, device=rows.device) * len(rows) / (len(own) * sizes)
            self.weights = torch.repeat_interleave(shares, sizes)

    def __len__(self) -> int:
        return len(self.steps)

    def loss(self, answers: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The mean loss of steps that are answered for some rows; the answers are in the scale of the inputs."""
        return ((answers * self.factors[rows] - self.steps[rows]).abs() * self.weights[rows]).mean()

    def plain(self) -> tuple[float, float]:
        """The losses of no change and of the linear step."""
        both = (self.steps, self.linear - self.steps)
        return tuple(float((error.abs() * self.weights).mean()) for error in both)


def _weight(rows: Tensor) -> float:
    """One over the mean |error| of no change in one trajectory; 0 where nothing moves: nothing is learnt there."""
    moved = float((rows[:, -1] - rows[:, -2]).abs().mean())
    return 1 / moved if moved else 0.0


def _fit_role(
    model: str, role: str, training: list[Tensor], selection: list[Tensor], settings: MetaTraining
) -> tuple[KnownNet, list[dict]]:
    """Train one network on the windows with targets of whole trajectories, each (N, S + 1).

    Returns it with the weights that were best on the selection, and rows with the columns `HISTORY`.
    """
    kept, chosen = (
        _Windows(part, NETWORKS[model], relative=settings.loss == "relative") for part in (training, selection)
    )
    seed = stream("metatrain", model, role)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = KnownNet(training[0].shape[1] - 1).to(kept.steps.device)
    generator = torch.Generator(device=kept.steps.device).manual_seed(stream(seed, "batches"))
    optimizer = torch.optim.Adam(net.parameters(), settings.optimizer_rate, fused=True)
    no_change, linear = chosen.plain()
    interval = max(1, settings.updates // settings.evaluations)
    best, best_state, waited, rows = math.inf, None, 0, []
    running = torch.zeros((), device=kept.steps.device)
    bar = progress(range(1, settings.updates + 1), desc=f"{model}, {role}", leave=False)
    for update in bar:
        drawn = torch.randint(len(kept), (settings.window_batch,), generator=generator, device=kept.steps.device)
        error = kept.loss(net(kept.inputs[drawn]), drawn)
        optimizer.zero_grad(set_to_none=True)
        (error + net.penalty(settings.bias_penalty)).backward()
        optimizer.step()
        running += error.detach()
        if update % interval:
            continue
        with torch.no_grad():
            loss = float(chosen.loss(torch.cat([net(part) for part in chosen.inputs.split(16384)])))
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
