"""Meta-training: what is drawn, how windows are cut, who is held out, and that what can be learnt is learnt."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import metatraining as metatrain
from benchmarks.data import load
from benchmarks.metatraining import (
    COEFFICIENTS,
    HELD_OUT,
    _least_squares,
    _meta_trajectory,
    draw_run,
    fit_known,
    histories,
    make_metaset,
    windows,
)
from benchmarks.settings import MetaTraining
from know.checkpoints import load_facts, load_state, save_state
from know.errors import KnowError
from know.files import read_json, write_json
from know.known import Known
from know.roles import PREDICTED
from know.seeds import stream


def settings(**changes) -> MetaTraining:
    plain = {
        "datasets": ["digits:0-4"],
        "networks": ["plaincnn"],
        "trajectories": 4,
        "held_out": 0.25,
        "images": 300,
        "smallest": 16,
        "pretraining_epochs": (1, 3),
        "batch_size": 16,
        "updates": 30,
        "evaluations": 3,
        "windows": 100,
        "window_batch": 64,
    }
    return MetaTraining(**{**plain, **changes})


# what is drawn


@pytest.mark.parametrize(("images", "smallest"), [(600, 16), (1000, 64), (100, 50), (50_000, 64)])
def test_draws_stay_within_their_ranges_and_keep_the_smallest_subset(images, smallest):
    ranges = settings(images=images, smallest=smallest, ratio=(0.3, 0.9), learning_rate=(1e-5, 4e-3), batch_size=32)
    runs = [draw_run(i, ranges) for i in range(300)]
    for run in runs:
        assert 0.3 <= run["ratio"] <= 0.9
        assert 1e-5 <= run["learning_rate"] <= 4e-3
        assert run["smallest"] == round(images * run["ratio"] ** 6) >= smallest
        assert min(32, run["smallest"]) <= run["batch_size"] <= max(32, run["smallest"])
        assert run["pretraining_epochs"] in (1, 2, 3)
    for key in ("ratio", "learning_rate"):  # the whole of the range is used
        values = [run[key] for run in runs]
        low, high = min(values), max(values)
        assert sum(value > (low + high) / 2 for value in values) == pytest.approx(150, abs=50)
    assert max(run["ratio"] for run in runs) > 0.88
    assert len({run["seed"] for run in runs}) == 300


def test_a_run_is_a_function_of_its_number_and_the_ranges_alone():
    other = settings(trajectories=400, shards=7, updates=9, held_out=0.4, windows=5)
    assert [draw_run(i, settings()) for i in range(20)] == [draw_run(i, other) for i in range(20)]


def test_runs_go_through_all_pairs_of_data_and_network():
    ranges = settings(datasets=["digits", "digits:0-4", "digits:5-9"], networks=["mlp", "plaincnn"])
    runs = [draw_run(i, ranges) for i in range(12)]
    pairs = [(run["dataset"], run["network"]) for run in runs]
    assert sorted(pairs) == sorted(2 * list(itertools.product(ranges.datasets, ranges.networks)))


def test_ranges_that_no_run_can_satisfy_are_refused():
    with pytest.raises(KnowError, match=r"100 images keep 90 .* above 0\.98, but ratio ends at 0\.9"):
        draw_run(0, settings(images=100, smallest=90))


# histories and windows


def known_states(size: int = 20) -> list[dict[str, torch.Tensor]]:
    """theta_0 ... theta_6: scalar number i of snapshot k has the value i + k / 10, and its role in the hundreds."""
    shapes = {
        "a.weight": (size, 1, 3, 3),
        "b.weight": (size, 4),
        "b.bias": (size,),
        "n.weight": (size,),
        "n.bias": (size,),
    }
    hundreds = {"a.weight": 1000, "b.weight": 2000, "b.bias": 3000, "n.weight": 4000, "n.bias": 4000}
    numbers = {n: torch.arange(torch.Size(s).numel()).reshape(s) + float(hundreds[n]) for n, s in shapes.items()}
    return [{name: number + k / 10 for name, number in numbers.items()} for k in range(7)]


def test_histories_are_one_a_scalar_smallest_subset_first():
    found = histories(known_states(), limit=10**6, seed=0)
    assert set(found) == {"conv", "fc", "bias"}
    for role, hundred, scalars in (("conv", 1000, 180), ("fc", 2000, 80), ("bias", 3000, 20)):
        rows = found[role].double()
        assert rows.shape == (scalars, 7)
        number = rows[:, 6].floor()
        snapshot = ((rows - number[:, None]) * 10).round().long()
        assert {tuple(row) for row in snapshot.tolist()} == {(6, 5, 4, 3, 2, 1, 0)}
        assert sorted(number.tolist()) == [hundred + i for i in range(scalars)]


@pytest.mark.parametrize("limit", [1, 7, 40, 1000])
def test_at_most_so_many_histories_of_each_role_are_kept(limit):
    found, whole = (histories(known_states(), limit=n, seed=3) for n in (limit, 10**6))
    for role in PREDICTED:
        assert len(found[role]) == min(limit, len(whole[role]))
        rows, all_rows = ({tuple(row) for row in table[role].tolist()} for table in (found, whole))
        assert len(rows) == len(found[role])  # drawn without repetition
        assert rows <= all_rows


def test_kept_histories_come_from_everywhere_and_depend_on_the_seed():
    first, again, other = (histories(known_states(), limit=60, seed=s)["conv"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 15 < int((first[:, 6] < 1090).sum()) < 45  # both halves of the tensor


def test_a_role_that_a_network_lacks_has_no_histories():
    states = [{"b.weight": state["b.weight"]} for state in known_states()]
    assert set(histories(states, limit=10, seed=0)) == {"fc"}


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (5, {(6, 5, 4, 3, 2, 1), (5, 4, 3, 2, 1, 0)}),  # five inputs, smallest subset first, then the target
        (6, {(6, 5, 4, 3, 2, 1, 0)}),
        (3, {(4, 3, 2, 1), (3, 2, 1, 0)}),
        (2, {(3, 2, 1), (2, 1, 0)}),
    ],
)
def test_windows_end_at_the_last_two_snapshots(length, expected):
    history = torch.arange(10.0)[:, None] * 10 + torch.arange(6, -1, -1)  # scalar 10 i at snapshot k: 10 i + k
    found = windows(history, length)
    assert found.shape == (10 * len(expected), length + 1)
    rows = {tuple(row) for row in found.long().tolist()}
    assert rows == {tuple(10 * i + k for k in window) for i in range(10) for window in expected}


# the meta-set


@pytest.fixture(scope="module")
def metaset(tmp_path_factory):
    """One real, tiny meta-set, in one shard and in three."""
    out = tmp_path_factory.mktemp("metaset")
    for shards in (1, 3):
        for shard in range(shards):
            make_metaset(shard, settings(shards=shards), out=out / f"{shards}-{shard}")
    return out


def shards_of(metaset: Path, shards: int) -> list[Path]:
    return [metaset / f"{shards}-{shard}" / "manifest.json" for shard in range(shards)]


def test_the_number_of_shards_changes_no_trajectory(metaset):
    one, three = (
        {
            path.name: path.read_bytes()
            for folder in metaset.glob(f"{shards}-*")
            for path in folder.glob("*.safetensors")
        }
        for shards in (1, 3)
    )
    assert len(one) == 4
    assert one == three


def test_a_trajectory_of_the_metaset_keeps_histories_and_what_was_drawn(metaset):
    files = sorted((metaset / "1-0").glob("*.safetensors"))
    for run, path in enumerate(files):
        facts, found = load_facts(path), load_state(path)
        assert facts == {**draw_run(run, settings()), "run": run, "status": "ok"}
        assert {role: tuple(rows.shape) for role, rows in found.items()} == dict.fromkeys(
            PREDICTED, (50, 7)
        )  # 100 windows
        assert all(float(rows.diff(dim=1).abs().max()) > 0 for rows in found.values())
    assert len({path.read_bytes() for path in files}) == 4


@pytest.mark.parametrize("together", [2, 3])
def test_runs_that_are_trained_at_once_share_what_must_be_shared_and_nothing_else(together):
    ranges = settings(together=together, datasets=["digits:0-4", "digits"], networks=["mlp", "plaincnn"])
    runs = [draw_run(i, ranges) for i in range(12 * together)]
    own = {"learning_rate", "seed"}
    for first in range(0, len(runs), together):
        group = runs[first : first + together]
        shared = [{key: value for key, value in run.items() if key not in own} for run in group]
        assert all(facts == shared[0] for facts in shared)
        assert len({run["learning_rate"] for run in group}) == len({run["seed"] for run in group}) == together
    assert len({(run["dataset"], run["network"]) for run in runs}) == 4
    assert len({run["ratio"] for run in runs}) == 12


def test_runs_that_are_trained_at_once_come_out_as_one_after_another(tmp_path):
    """The median weight: Adam makes of a gradient of almost 0 a step of either sign."""
    plan = settings(together=3, trajectories=5, shards=2, learning_rate=(1e-4, 1e-3))
    digits = load("digits:0-4")
    for shard in range(2):
        make_metaset(shard, plan, out=tmp_path / str(shard))
    files = sorted(path for shard in range(2) for path in (tmp_path / str(shard)).glob("*.safetensors"))
    assert sorted(path.name for path in files) == [f"{run:05d}.safetensors" for run in range(5)]
    for path in files:
        facts, found = load_facts(path), load_state(path)
        assert facts == {**draw_run(facts["run"], plan), "run": facts["run"], "status": "ok"}
        (states,) = _meta_trajectory([draw_run(facts["run"], plan)], digits, plan)
        alone = histories(states, plan.windows // 2, stream(facts["seed"], "windows"))
        for role, rows in found.items():
            assert (rows - alone[role]).abs().quantile(0.9) < 1e-4
            assert rows.diff(dim=1).abs().quantile(0.9) > 1e-4  # pixels that are always black teach nothing


def test_a_run_that_diverges_beside_others_is_left_out_alone(monkeypatch, tmp_path):
    real = metatrain.draw_run

    def too_fast(run, ranges):
        return {**real(run, ranges), **({"learning_rate": 1e30} if run == 2 else {})}

    monkeypatch.setattr(metatrain, "draw_run", too_fast)
    make_metaset(0, settings(together=4, shards=1), out=tmp_path / "0")
    said = {path.name: load_facts(path)["status"] for path in sorted((tmp_path / "0").glob("*.safetensors"))}
    assert list(said.values()) == ["ok", "ok", "diverged", "ok"]


def test_networks_that_ship_may_be_judged_beside(tmp_path):
    made = settings(beside="general", datasets=["digits:0-4"], trajectories=4, shards=1)
    make_metaset(0, made, out=tmp_path / "0")
    fit_known([tmp_path / "0" / "manifest.json"], made, out=tmp_path / "known")
    errors = pd.read_csv(tmp_path / "known" / "held_out.csv")
    runs = {model: set(own.run) for model, own in errors.groupby("model")}
    assert runs["shipped"] == runs["known"]
    assert not np.allclose(*(errors[errors.model == model].loss for model in ("known", "shipped")))


def test_the_number_of_shards_changes_no_bit_of_known(metaset, tmp_path):
    for shards in (1, 3):
        fit_known(reversed(shards_of(metaset, shards)), settings(shards=shards), out=tmp_path / str(shards))
    for model in ("known", "scaled", "meta_linear"):
        one, three = (load_state(tmp_path / str(shards) / f"{model}.safetensors") for shards in (1, 3))
        assert all(torch.equal(one[name], three[name]) for name in one)
    for name in ("history.csv", "meta_linear.csv", "held_out.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(KnowError, match="images is 700, but digits:0-4 has 649"):
        make_metaset(0, settings(images=700), out=tmp_path / "out")


# the training of KNOWN


@pytest.fixture
def shards(tmp_path):
    """Function that writes made-up histories, one file a trajectory, in so many shards; the manifests."""

    def write(
        trajectories: list[dict[str, torch.Tensor]],
        shards: int = 2,
        diverged=(),
        name="shards",
        networks=("mlp",),
        datasets=("digits",),
    ) -> list[Path]:
        manifests = []
        for shard in range(shards):
            folder, files = tmp_path / name / str(shard), {}
            for run in range(shard, len(trajectories), shards):
                path = folder / f"{run:05d}.safetensors"
                dataset, network = datasets[run % len(datasets)], networks[run % len(networks)]
                facts = {"run": run, "dataset": dataset, "network": network}
                save_state(path, trajectories[run], facts | {"status": "diverged" if run in diverged else "ok"})
                files[path.name] = ""
            write_json(folder / "manifest.json", {"files": files})
            manifests.append(folder / "manifest.json")
        return manifests

    return write


def straight(seed: int, count: int = 400) -> dict[str, torch.Tensor]:
    """Histories of weights that move by a constant of their own."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for role in PREDICTED:
        start, step = 0.3 * torch.randn(2, count, 1, generator=generator)
        found[role] = start + 0.3 * step * torch.arange(7)
    return found


def error(known: Known, rows: torch.Tensor, role: str) -> float:
    """Mean absolute error of a predicted weight on the windows of histories (N, 7)."""
    rows = windows(rows, known.length)
    return float((rows[:, -2] + known.residual(rows[:, :-1], role) - rows[:, -1]).abs().mean())


def losses_of(folder: Path, model: str, role: str) -> list[float]:
    """Losses of one network on the selection, evaluation by evaluation."""
    with (folder / "history.csv").open() as table:
        rows = list(csv.DictReader(table))
    return [float(row["selection_loss"]) for row in rows if (row["model"], row["role"]) == (model, role)]


def test_known_learns_a_constant_movement(shards, tmp_path):
    chosen = settings(updates=240, evaluations=6, window_batch=256, optimizer_rate=5e-3, bias_penalty=0.0)
    known = fit_known(shards([straight(i) for i in range(8)]), chosen, out=tmp_path)
    scaled, unseen = Known.load(tmp_path / "scaled.safetensors"), straight(100)
    assert (known.scaling, scaled.scaling) == ("none", "range")
    for role in PREDICTED:
        no_change = float(unseen[role].diff(dim=1)[:, -2:].abs().mean())
        assert error(known, unseen[role], role) < 0.25 * no_change
        held_out = known.facts["held_out"][role]
        assert held_out["loss"] < 0.25 * held_out["no_change_loss"]
        assert held_out["linear_loss"] < 1e-6
        assert error(scaled, unseen[role], role) < 0.25 * no_change
        assert error(scaled, 10 * unseen[role] + 5, role) < 0.25 * 10 * no_change  # far outside the meta-set


def test_the_weights_are_kept_that_are_best_on_the_selection(shards, tmp_path):
    made = [straight(i) for i in range(8)]
    chosen = settings(updates=60, evaluations=20, optimizer_rate=0.03)  # a rate at which the loss goes up and down
    fit_known(shards(made), chosen, out=tmp_path / "known")
    not_the_last = 0
    for model, role in itertools.product(("known", "scaled"), PREDICTED):
        known = Known.load(tmp_path / "known" / f"{model}.safetensors")
        losses = losses_of(tmp_path / "known", model, role)
        not_the_last += losses.index(min(losses)) < len(losses) - 1
        selection = torch.cat([made[i][role] for i in (3, 7)])  # every 4th
        assert error(known, selection, role) == pytest.approx(min(losses), rel=1e-4)
    assert not_the_last >= 3  # else keeping the last weights would do


def test_reported_errors_are_those_on_the_held_out_trajectories(shards, tmp_path):
    made = [straight(i, 100 * (i + 1)) for i in range(8)]
    known = fit_known(shards(made), settings(), out=tmp_path / "known")
    with (tmp_path / "known" / "held_out.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == HELD_OUT
    assert {int(row["run"]) for row in rows} == {2, 6}  # every 4th, and the selection comes after it
    at = {(int(row["run"]), row["role"], row["model"]): row for row in rows}
    scaled, coefficients = (load_tensors(tmp_path / "known", name) for name in ("scaled", "meta_linear"))
    for run, role in itertools.product((2, 6), PREDICTED):
        assert float(at[run, role, "known"]["loss"]) == pytest.approx(error(known, made[run][role], role), rel=1e-3)
        assert float(at[run, role, "scaled"]["loss"]) == pytest.approx(error(scaled, made[run][role], role), rel=1e-3)
        both = windows(made[run][role], 5)
        window, truth = both[:, :-1], both[:, -1]
        step = window.diff(dim=1) @ coefficients[role]
        row = at[run, role, "meta_linear"]
        assert float(row["loss"]) == pytest.approx(float((window[:, -1] + step - truth).abs().mean()), abs=1e-6)
        assert float(row["step"]) == pytest.approx(float(step.norm() / window[:, -1].norm()), rel=1e-3)
        assert float(row["no_change_loss"]) == pytest.approx(float((window[:, -1] - truth).abs().mean()), rel=1e-3)
        assert int(row["windows"]) == 2 * 100 * (run + 1)
    for role in PREDICTED:  # each trajectory counts once, whatever its size
        losses = [float(at[run, role, "known"]["loss"]) for run in (2, 6)]
        assert known.facts["held_out"][role]["loss"] == pytest.approx(sum(losses) / 2, rel=1e-3)


def load_tensors(folder: Path, name: str):
    path = folder / f"{name}.safetensors"
    return load_state(path) if name == "meta_linear" else Known.load(path)


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_selection_and_held_out_trajectories_are_never_trained_on(shards, tmp_path, changed):
    """With one evaluation, at the end, they cannot reach the weights, 2 not at all: changing the others does."""
    made = [straight(i) for i in range(4)]
    other = [straight(50) if i == changed else windows for i, windows in enumerate(made)]
    chosen = settings(updates=5, evaluations=1)
    first, second = (
        fit_known(shards(data, name=name), chosen, out=tmp_path / f"known-{name}")
        for data, name in ((made, "a"), (other, "b"))
    )
    for role in PREDICTED:
        a, b = first.nets[role].state_dict(), second.nets[role].state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a) == (changed in (2, 3))
        reported = [known.facts["held_out"][role]["no_change_loss"] for known in (first, second)]
        assert (reported[0] != reported[1]) == (changed == 2)
        chosen_on = [losses_of(tmp_path / f"known-{name}", "known", role) for name in "ab"]
        assert (chosen_on[0] == chosen_on[1]) == (changed == 2)


def test_the_held_out_choose_nothing(shards, tmp_path):
    """Many evaluations with losses that go up and down: other held-out trajectories, the same weights."""
    made = [straight(i) for i in range(4)]
    chosen = settings(updates=60, evaluations=20, optimizer_rate=0.03)
    first, second = (
        fit_known(shards([*made[:2], held_out, made[3]], name=name), chosen, out=tmp_path / f"known-{name}")
        for name, held_out in (("a", made[2]), ("b", straight(70)))
    )
    for role in PREDICTED:
        a, b = first.nets[role].state_dict(), second.nets[role].state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_group_leaves_out_whole_families_of_data(shards, tmp_path):
    names = ["cifar10_15k", "mnist", "cifar100:0-4", "mnist", "mnist", "mnist"]
    made = [straight(i) for i in range(6)]
    every = fit_known(shards(made, datasets=names, name="a"), settings(), out=tmp_path / "every")
    group = fit_known(shards(made, datasets=names, name="b"), settings(), without=["cifar"], out=tmp_path / "group")
    alone = fit_known(
        shards([made[i] for i in (1, 3, 4, 5)], datasets=["mnist"] * 4, name="c"), settings(), out=tmp_path / "alone"
    )
    assert every.facts["data"] == ["cifar100:0-4", "cifar10_15k", "mnist"]
    assert group.facts["data"] == read_json(tmp_path / "group" / "facts.json")["data"] == ["mnist"]
    for role in PREDICTED:
        a, b = (known.nets[role].state_dict() for known in (group, alone))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_every_network_is_among_the_held_out(shards, tmp_path):
    """Networks alternate from run to run; a plain stride would hold out one of them alone, here without conv."""
    made = [straight(i) if i % 2 else {role: straight(i)[role] for role in ("fc", "bias")} for i in range(8)]
    both = shards(made, networks=("mlp", "plaincnn"))
    reverse = shards(made[::-1], networks=("plaincnn", "mlp"), name="reverse")
    for manifests, name in ((both, "both"), (reverse, "reverse")):
        known = fit_known(manifests, settings(updates=5, evaluations=1), out=tmp_path / f"known-{name}")
        assert known.facts["trajectories"] == {"training": 4, "selection": 2, "held_out": 2, "diverged": 0}
        assert known.facts["held_out"].keys() == set(PREDICTED)


def test_trajectories_that_diverged_are_used_for_nothing(shards, tmp_path):
    made = [straight(i) for i in range(4)]
    broken = {role: torch.full((10, 7), float("nan")) for role in PREDICTED}
    clean = fit_known(shards(made, name="a"), settings(), out=tmp_path / "clean")
    mixed = fit_known(shards([*made, broken], name="b", diverged={4}), settings(), out=tmp_path / "mixed")
    assert [known.facts["trajectories"]["diverged"] for known in (clean, mixed)] == [0, 1]
    for role in PREDICTED:
        a, b = clean.nets[role].state_dict(), mixed.nets[role].state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_training_stops_when_patience_is_lost(shards, tmp_path):
    dice = torch.Generator().manual_seed(0)
    noise = [{role: 0.3 * torch.randn(50, 7, generator=dice) for role in PREDICTED} for _ in range(4)]
    chosen = settings(updates=4000, evaluations=400, patience=3, optimizer_rate=0.01)
    fit_known(shards(noise), chosen, out=tmp_path / "known")
    for role in PREDICTED:
        losses = losses_of(tmp_path / "known", "known", role)
        assert len(losses) < 400
        assert losses.index(min(losses)) == len(losses) - 4


@pytest.mark.parametrize("length", [2, 3, 6])
def test_networks_of_another_length_are_trained_on_the_same_metaset(shards, tmp_path, length):
    known = fit_known(shards([straight(i) for i in range(4)]), settings(updates=5), length=length, out=tmp_path)
    for model in (known, Known.load(tmp_path / "known.safetensors"), Known.load(tmp_path / "scaled.safetensors")):
        assert model.length == length
    coefficients = load_state(tmp_path / "meta_linear.safetensors")
    for role in PREDICTED:
        assert (len(coefficients[role]), len(coefficients[f"{role}.theta_0"])) == (length - 1, length)


# meta-linear


def following(coefficients: list[float], theta_0: float, count: int = 60) -> torch.Tensor:
    """Histories (N, 7), float32: five random weights, then two that the combination of differences gives."""
    dice = torch.Generator().manual_seed(len(coefficients))
    values = list(torch.randn(7 - 2, count, generator=dice, dtype=torch.float64))
    for _ in range(2):
        steps = [later - earlier for earlier, later in itertools.pairwise(values[-5:])]
        values.append(values[-1] + theta_0 * values[-1] + sum(c * d for c, d in zip(coefficients, steps, strict=True)))
    return torch.stack(values, dim=1).float()


@pytest.mark.parametrize("theta_0", [0.0, -0.3])
def test_least_squares_finds_the_combination(theta_0):
    wanted = [0.1, -0.2, 0.05, 0.7]
    rows = windows(following(wanted, theta_0), 5)
    solved = _least_squares(rows, with_theta_0=True)
    assert solved.tolist() == pytest.approx([*wanted, theta_0], abs=1e-5)
    solved = _least_squares(rows, with_theta_0=False)
    assert len(solved) == 4
    assert (solved.tolist() == pytest.approx(wanted, abs=1e-5)) == (theta_0 == 0)


def test_the_coefficients_of_a_metaset_are_kept_by_role_with_their_losses(shards, tmp_path):
    wanted = {"conv": [0.1, 0.0, 0.0, 0.5], "fc": [0.0, 0.2, -0.4, 0.3], "bias": [0.0, 0.0, 0.0, 1.0]}
    made = [{role: following(c, 0.0, 20 + i) for role, c in wanted.items()} for i in range(4)]
    fit_known(shards(made), settings(updates=5), out=tmp_path)
    found = load_state(tmp_path / "meta_linear.safetensors")
    for role, coefficients in wanted.items():
        assert found[role].tolist() == pytest.approx(coefficients, abs=1e-5)
        assert found[f"{role}.theta_0"].tolist() == pytest.approx([*coefficients, 0.0], abs=1e-5)
    with (tmp_path / "meta_linear.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == COEFFICIENTS
    terms = {(row["model"], row["role"], row["term"]): float(row["value"]) for row in rows}
    assert len(terms) == 3 * (4 + 5)
    assert terms["meta_linear", "fc", "difference 3"] == pytest.approx(-0.4, abs=1e-5)
    assert terms["meta_linear_theta0", "conv", "theta_0"] == pytest.approx(0, abs=1e-5)


# what else is promised


def test_the_bias_penalty_keeps_biases_small(shards, tmp_path):
    made = shards([straight(i) for i in range(4)])
    sums = []
    for penalty in (0.0, 0.1):
        chosen = settings(updates=100, optimizer_rate=5e-3, bias_penalty=penalty)
        known = fit_known(made, chosen, out=tmp_path / str(penalty))
        sums.append(float(known.nets["fc"].values.first.bias.abs().sum().detach()))
    assert sums[1] < 0.5 * sums[0]


@pytest.mark.parametrize(
    ("trajectories", "diverged", "said"),
    [
        ([straight(i) for i in range(4)], {0, 1, 2}, "only 1 of 4 .* did not diverge"),
        ([{"fc": straight(i)["fc"]} for i in range(4)], (), "no windows of role conv"),
    ],
)
def test_too_little_to_train_on_is_named(shards, tmp_path, trajectories, diverged, said):
    with pytest.raises(KnowError, match=said):
        fit_known(shards(trajectories, diverged=diverged), settings(), out=tmp_path / "known")


def test_the_card_says_what_known_was_trained_on(metaset, tmp_path):
    known = fit_known(shards_of(metaset, 1), settings(), out=tmp_path / "known")
    assert (known.facts["data"], known.facts["networks"]) == (["digits:0-4"], ["plaincnn"])
    assert known.facts["trajectories"] == {"training": 2, "selection": 1, "held_out": 1, "diverged": 0}
    assert Known.load(tmp_path / "known" / "known.safetensors").facts == known.facts
    assert read_json(shards_of(metaset, 1)[0])["data"].keys() == {"digits:0-4"}
