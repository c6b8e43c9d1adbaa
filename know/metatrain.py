"""Meta-training of KNOWN: forgetting trajectories of many small networks, cut into windows, and an L1 regression.

The same windows train two more predictors, so that KNOWN can be compared with them: scaled KNOWN, and meta-linear, the
closed-form least squares over the differences.

Paper: 7 snapshots per run give two windows of 5 inputs and 1 target; r from U(0.3, 0.9), learning rate from
U(1e-5, 4e-3), batch size from U(32, r^6 |D0|), Adam. Here r has the further lower bound that keeps `smallest` images in
the smallest subset. The paper says nothing of epochs and optimiser of the hyper-model: those are suite keys.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from know.data import load, nested_subsets
from know.errors import KnowError
from know.files import code_hash, digest, read_json, resumable_folder, sha256_file, write_csv, write_json, write_text
from know.known import Known, KnownNet, Scaling, scale_windows
from know.nets import build
from know.seeds import stream
from know.suite import LENGTH, MetaTraining, Recipe
from know.training import train
from know.trajectory import PREDICTED, State, load_facts, load_state, roles, save_state

SNAPSHOTS = 7
WINDOWS = 2
"""Windows cut from one history (paper); one only where S is 6."""
HISTORY = ["model", "role", "update", "training_loss", "held_out_loss", "no_change_loss", "linear_loss"]
COEFFICIENTS = ["model", "role", "term", "value"]
NETWORKS: dict[str, Scaling] = {"known": "none", "scaled": "range"}
"""The networks that are trained, each on three roles, and how their windows are scaled."""


def draw_run(run: int, settings: MetaTraining) -> dict:
    """What is random about meta-trajectory number `run`; a function of the run and the settings' ranges alone."""
    dice = random.Random(stream("metaset", run))
    low, high = settings.rate
    low = max(low, (settings.smallest / settings.images) ** (1 / (SNAPSHOTS - 1)))
    if low > high:
        raise KnowError(
            f"metatraining: {settings.images} images keep {settings.smallest} in the smallest of {SNAPSHOTS} subsets "
            f"only with a rate above {low:.2f}, but rate ends at {high:g}"
        )
    rate = dice.uniform(low, high)
    smallest = round(settings.images * rate ** (SNAPSHOTS - 1))
    return {
        "dataset": settings.datasets[run % len(settings.datasets)],
        "network": settings.networks[run // len(settings.datasets) % len(settings.networks)],
        "rate": rate,
        "learning_rate": dice.uniform(*settings.learning_rate),
        "batch_size": dice.randint(*sorted((settings.batch_size, smallest))),
        "pretraining_epochs": dice.randint(*settings.pretraining_epochs),
        "smallest": smallest,
        "seed": stream("metaset", run, "training"),
    }


def histories(states: list[State], limit: int, seed: int) -> dict[str, Tensor]:
    """Histories of single weights, per predicted role: float32 (N, 7), smallest subset first.

    states: the 7 snapshots, largest subset (theta_0) first. At most `limit` weights of each role are kept, drawn
    evenly.
    """
    role_of = roles(states[0])
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for role in PREDICTED:
        names = sorted(name for name in states[0] if role_of[name] == role)
        if not names:
            continue
        # (scalars, 7), smallest subset first
        history = torch.stack([torch.cat([s[n].flatten().float() for n in names]) for s in reversed(states)], dim=1)
        found[role] = history[torch.randperm(len(history), generator=generator)[:limit]].contiguous()
    return found


def windows(history: Tensor, length: int) -> Tensor:
    """Windows with their target, (windows, S + 1), of histories (N, 7): inputs smallest subset first, target last.

    The last two windows of each: theta_{S+1}..theta_2 -> theta_1 and theta_S..theta_1 -> theta_0.
    """
    count = min(WINDOWS, SNAPSHOTS - length)
    return torch.cat([history[:, end - length - 1 : end] for end in range(SNAPSHOTS - count + 1, SNAPSHOTS + 1)])


def make_metaset(shard: int, settings: MetaTraining, *, out: Path, device: str = "cpu") -> None:
    """Train one share of the meta-trajectories and keep their windows: `<out>/<run>.safetensors`, manifest last."""
    first, end = (settings.trajectories * k // settings.shards for k in (shard, shard + 1))
    runs = range(first, end)
    datasets = {name: load(name, device=device) for name in settings.datasets}
    for name, dataset in datasets.items():
        if len(dataset.train) < settings.images:
            raise KnowError(f"metatraining.images is {settings.images}, but {name} has {len(dataset.train)} images")
    data = {name: dataset.sha256 for name, dataset in datasets.items()}
    code = code_hash(__name__)
    fingerprint = digest([shard, settings.model_dump(), data, code, torch.__version__])
    with resumable_folder(out, fingerprint) as folder:
        files = {}
        for run in tqdm(runs, desc=f"meta-trajectories, shard {shard}", disable=None):
            path = folder / f"{run:05d}.safetensors"
            if not path.is_file():
                drawn = draw_run(run, settings)
                states, diverged = _meta_trajectory(drawn, datasets[drawn["dataset"]], settings)
                limit, seed = max(1, settings.windows // WINDOWS), stream(drawn["seed"], "windows")
                found = {} if diverged else histories(states, limit, seed)
                save_state(path, found, {**drawn, "run": run, "status": "diverged" if diverged else "ok"})
            files[path.name] = sha256_file(path)
        write_json(folder / "manifest.json", {"code": code, "data": data, "files": files})


def _meta_trajectory(drawn: dict, dataset, settings: MetaTraining) -> tuple[list[State], bool]:
    """Snapshots theta_0 ... theta_6 of one run (paper: sequential fine-tuning on nested subsets)."""
    seed = drawn["seed"]
    fractions = [settings.images / len(dataset.train) * drawn["rate"] ** k for k in range(SNAPSHOTS)]
    model = build(drawn["network"], dataset.shape, len(dataset.classes), seed=stream(seed, "initialisation"))
    model.to(dataset.mean.device)
    states, optimizer = [], None
    for k, index in enumerate(nested_subsets(len(dataset.train), fractions, stream(seed, "subsets"))):
        epochs = settings.forgetting_epochs if k else drawn["pretraining_epochs"]
        recipe = Recipe(epochs=epochs, learning_rate=drawn["learning_rate"], batch_size=drawn["batch_size"])
        split, step_seed = dataset.train.take(index), stream(seed, "step", k)
        outcome = train(model, dataset, split, recipe, seed=step_seed, optimizer_state=optimizer)
        optimizer = outcome.optimizer if settings.carry_optimizer else None
        states.append({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()})
        if outcome.status != "ok":
            return states, True
    return states, False


def fit_known(
    shards: Iterable[Path], settings: MetaTraining, *, length: int = LENGTH, out: Path, device: str = "cpu"
) -> Known:
    """Train everything that is learnt from the windows of all shards, for histories of S = `length` snapshots.

    Writes into `out`: known.safetensors and scaled.safetensors (see `Known`), meta_linear.safetensors and its numbers
    as meta_linear.csv, history.csv of the training, and the card, README.md.

    Whole trajectories are held out (every k-th of those that did not diverge). A role stops when its held-out loss has
    not improved for `patience` evaluations; the best weights are kept.
    """
    found = [Path(shard).parent / name for shard in shards for name in read_json(shard)["files"]]
    files = sorted(found, key=lambda path: path.name)  # the order of the runs, whatever the number of shards
    facts_of = {path: load_facts(path) for path in files}
    good = [path for path in files if facts_of[path]["status"] == "ok"]
    # evenly from every dataset and network: those alternate from run to run, and so might a plain stride
    by_kind = sorted(good, key=lambda path: (facts_of[path]["dataset"], facts_of[path]["network"], path.name))
    stride = max(2, round(1 / settings.held_out))
    held_out = set(by_kind[stride - 1 :: stride])
    if not held_out:
        raise KnowError(f"only {len(good)} of {len(files)} meta-trajectories did not diverge; none can be held out")
    parts: dict[str, tuple[list[Tensor], list[Tensor]]] = {role: ([], []) for role in PREDICTED}
    for path in good:
        for role, values in load_state(path).items():
            parts[role][path in held_out].append(windows(values, length))
    split = {
        role: tuple(torch.cat(part).to(device) if part else torch.zeros(0, length + 1) for part in both)
        for role, both in parts.items()
    }
    for role, (kept, held) in split.items():
        if not len(kept) or not len(held):
            raise KnowError(f"metatraining: no windows of role {role}; add a network that has such tensors")
    facts = {
        "data": sorted(settings.datasets),
        "networks": sorted(settings.networks),
        "trajectories": len(good),
        "held_out_trajectories": len(held_out),
        "diverged": len(files) - len(good),
        "settings": settings.model_dump(mode="json"),
        "code": code_hash(__name__),
    }
    trained, rows = {}, []
    for model, scaling in NETWORKS.items():
        nets, losses = {}, {}
        for role, (kept, held) in split.items():
            net, history = _fit_role(model, role, kept, held, settings)
            rows += history
            best = min(history, key=lambda row: row["held_out_loss"])
            nets[role], losses[role] = net.cpu(), {key: best[key] for key in HISTORY[2:]}
        trained[model] = Known(nets, {**facts, "model": model, "scaling": scaling, "losses": losses})
        trained[model].save(out / f"{model}.safetensors")
    write_csv(out / "history.csv", rows, HISTORY)
    coefficients, numbers = {}, []
    for role, (kept, held) in split.items():
        for model, terms in (("meta_linear", 0), ("meta_linear_theta0", 1)):
            solved, loss = _least_squares(kept, held, with_theta_0=bool(terms))
            coefficients[f"{role}.theta_0" if terms else role] = solved.float()
            names = [f"difference {k}" for k in range(1, length)] + ["theta_0"] * terms
            values = [*solved.tolist(), loss]
            for term, value in zip([*names, "held_out_loss"], values, strict=True):
                numbers.append({"model": model, "role": role, "term": term, "value": f"{value:.6g}"})
    save_state(out / "meta_linear.safetensors", coefficients, facts)
    write_csv(out / "meta_linear.csv", numbers, COEFFICIENTS)
    write_text(out / "README.md", card(trained["known"]))
    return trained["known"]


def _least_squares(kept: Tensor, held: Tensor, *, with_theta_0: bool) -> tuple[Tensor, float]:
    """Coefficients, float64 (S - 1 or S,), of the step in the differences, oldest first, and in theta_0 if asked; and
    their mean absolute error on the held-out windows.
    """

    def terms(part: Tensor) -> tuple[Tensor, Tensor]:
        window = part.double().cpu()  # the driver that copes with any rank is the processor's
        inputs = window[:, :-1].diff(dim=1)  # (N, S - 1)
        inputs = torch.cat([inputs, window[:, -2:-1]], dim=1) if with_theta_0 else inputs
        return inputs, window[:, -1] - window[:, -2]

    inputs, step = terms(kept)
    solved = torch.linalg.lstsq(inputs, step[:, None], driver="gelsd").solution[:, 0]
    inputs, step = terms(held)
    return solved, float((inputs @ solved - step).abs().mean())


def card(known: Known) -> str:
    """The card of a trained KNOWN, in Markdown, from what its file records."""
    facts, settings = known.facts, known.facts["settings"]
    losses = [
        f"| {role} | {loss['held_out_loss']:.3g} | {loss['no_change_loss']:.3g} | {loss['linear_loss']:.3g} |"
        for role, loss in ((role, facts["losses"][role]) for role in PREDICTED)
    ]
    ranges = {key: " to ".join(f"{bound:g}" for bound in settings[key]) for key in ("rate", "learning_rate")}
    return f"""# KNOWN, meta-trained on {", ".join(facts["data"])}

Three networks of 9,425 parameters (conv, fc, bias), history length {known.length}; see `know/known.py` for the paper.

- Trained on {facts["trajectories"]} forgetting trajectories ({facts["held_out_trajectories"]} of them held out, \
{facts["diverged"]} more diverged) of {", ".join(facts["networks"])}.
- Rates drawn from {ranges["rate"]}, learning rates from {ranges["learning_rate"]}; {settings["images"]} images in the \
largest subset, at least {settings["smallest"]} in the smallest.
- In-distribution wherever the source or target is one of {", ".join(facts["data"])}: results there are no evidence.
- Nothing is known about networks, sizes and data far from these.

Mean absolute error of a predicted weight on held-out trajectories:

| role | KNOWN | no change | linear step |
|---|---:|---:|---:|
{chr(10).join(losses)}

Code fingerprint {facts["code"]}.
"""


def _fit_role(model: str, role: str, kept: Tensor, held: Tensor, settings: MetaTraining) -> tuple[KnownNet, list[dict]]:
    """Train one network on windows with targets (N, S + 1); its best weights, and the rows of `HISTORY`.

    The loss is in the units of the weights, whatever the scaling: a scaled step counts as much as it moves.
    """
    length = kept.shape[1] - 1
    seed = stream("metatrain", model, role)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = KnownNet(length).to(kept.device)
    generator = torch.Generator(device=kept.device).manual_seed(stream(seed, "batches"))
    optimizer = torch.optim.Adam(net.parameters(), settings.optimizer_rate, fused=True)
    no_change = float((held[:, -2] - held[:, -1]).abs().mean())
    linear = float((2 * held[:, -2] - held[:, -3] - held[:, -1]).abs().mean())
    (inputs, factors), steps = scale_windows(kept[:, :-1], NETWORKS[model]), kept[:, -1] - kept[:, -2]
    (held_inputs, held_factors), held_steps = scale_windows(held[:, :-1], NETWORKS[model]), held[:, -1] - held[:, -2]
    interval = max(1, settings.updates // settings.evaluations)
    best, best_state, waited, rows = math.inf, None, 0, []
    running = torch.zeros((), device=kept.device)
    bar = tqdm(range(1, settings.updates + 1), desc=f"{model}, {role}", disable=None, leave=False)
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
            answers = torch.cat([net(part) for part in held_inputs.split(16384)]) * held_factors
        loss = float((answers - held_steps).abs().mean())
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
        bar.set_postfix(held_out=f"{loss:.3g}", no_change=f"{no_change:.3g}")
        if waited >= settings.patience or not math.isfinite(loss):
            break
    if best_state is None:
        raise KnowError(f"meta-training of role {role} gave no finite loss; lower metatraining.optimizer_rate")
    net.load_state_dict(best_state)
    return net, rows
