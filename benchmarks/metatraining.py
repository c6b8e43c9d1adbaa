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

import jinja2
import torch
from torch import Tensor

from benchmarks.metaset import windows
from benchmarks.progress import progress
from benchmarks.settings import LENGTH, MetaTraining, family
from know.checkpoints import load_facts, load_state, save_state
from know.errors import KnowError
from know.files import read_json, write_csv, write_json, write_text
from know.fingerprint import code_hash
from know.known import Known, KnownNet, Scaling, scale_windows
from know.roles import PREDICTED
from know.seeds import stream

METATRAINING = "benchmarks.metatraining:fit_known"
"""The function from which the fingerprint of code is made."""
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
    """Training, selection and held-out trajectories. The last two are taken evenly from every network and from the
    range of r; a plain stride over the runs might miss a network, since networks alternate from run to run.
    """
    by_kind = sorted(good, key=lambda path: (good[path]["network"], good[path]["ratio"], path.name))
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
