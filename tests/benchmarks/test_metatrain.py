"""Meta-training: who is held out, that what can be learnt is learnt, and what is kept of it."""

import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch
from planted_results import meta_settings as settings
from small_model import equal

from benchmarks.metaset import windows
from benchmarks.metatraining import COEFFICIENTS, HELD_OUT, _least_squares, _Windows, fit_known
from know.checkpoints import load_state, save_state
from know.errors import KnowError
from know.files import read_json, write_json
from know.known import Known
from know.roles import PREDICTED

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
                facts = {"run": run, "dataset": dataset, "network": network, "ratio": 0.5, "updates": 90}
                facts |= {"images": 1000, "smallest": 16, "batch_size": 16, "learning_rate": 1e-3}
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


def same(first: Known, second: Known, role: str) -> bool:
    """Whether the networks of a role have the same bits."""
    return equal(first.nets[role].state_dict(), second.nets[role].state_dict())


def losses_of(folder: Path, model: str, role: str) -> list[float]:
    """Losses of one network on the selection, evaluation by evaluation."""
    table = pd.read_csv(folder / "history.csv")
    return table.loc[(table.model == model) & (table.role == role), "selection_loss"].tolist()


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
    table = pd.read_csv(tmp_path / "known" / "held_out.csv")
    assert list(table) == HELD_OUT
    assert set(table.run) == {2, 6}  # every 4th, and the selection comes after it
    at = {(row.run, row.role, row.model): row._asdict() for row in table.itertuples()}
    scaled, coefficients = (load_tensors(tmp_path / "known", name) for name in ("scaled", "meta_linear"))
    for run, role in itertools.product((2, 6), PREDICTED):
        assert at[run, role, "known"]["loss"] == pytest.approx(error(known, made[run][role], role), rel=1e-3)
        assert at[run, role, "scaled"]["loss"] == pytest.approx(error(scaled, made[run][role], role), rel=1e-3)
        both = windows(made[run][role], 5)
        window, truth = both[:, :-1], both[:, -1]
        step = window.diff(dim=1) @ coefficients[role]
        row = at[run, role, "meta_linear"]
        assert row["loss"] == pytest.approx(float((window[:, -1] + step - truth).abs().mean()), abs=1e-6)
        assert row["step"] == pytest.approx(float(step.norm() / window[:, -1].norm()), rel=1e-3)
        assert row["no_change_loss"] == pytest.approx(float((window[:, -1] - truth).abs().mean()), rel=1e-3)
        assert row["windows"] == 2 * 100 * (run + 1)
    for role in PREDICTED:  # each trajectory counts once, whatever its size
        losses = [at[run, role, "known"]["loss"] for run in (2, 6)]
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
        assert same(first, second, role) == (changed in (2, 3))
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
    assert all(same(first, second, role) for role in PREDICTED)


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
    assert all(same(group, alone, role) for role in PREDICTED)


def test_every_network_is_among_the_held_out(shards, tmp_path):
    """Networks alternate from run to run; a plain stride would hold out one of them alone, here without conv."""
    made = [straight(i) if i % 2 else {role: straight(i)[role] for role in ("fc", "bias")} for i in range(8)]
    both = shards(made, networks=("mlp", "plaincnn"))
    reverse = shards(made[::-1], networks=("plaincnn", "mlp"), name="reverse")
    for manifests, name in ((both, "both"), (reverse, "reverse")):
        known = fit_known(manifests, settings(updates=5, evaluations=1), out=tmp_path / f"known-{name}")
        assert known.facts["trajectories"] == {"training": 4, "selection": 2, "held_out": 2, "diverged": 0}
        assert known.facts["held_out"].keys() == set(PREDICTED)


def test_runs_that_were_trained_at_once_are_held_out_at_once(shards, tmp_path):
    """They have one r and one number of updates: to train on one of them tells of the others."""
    runs = shards([straight(i) for i in range(12)])
    fit_known(runs, settings(updates=5, evaluations=1, together=3), out=tmp_path / "known")
    held_out = pd.read_csv(tmp_path / "known" / "held_out.csv")["run"]
    assert set(held_out) == {6, 7, 8}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_windows_on_a_gpu_train_networks_that_the_host_asks(shards, tmp_path):
    runs = shards([straight(i) for i in range(4)])
    known = fit_known(runs, settings(updates=5, evaluations=1), out=tmp_path / "known", device="cuda")
    assert {parameter.device.type for parameter in known.nets["conv"].parameters()} == {"cpu"}


def test_trajectories_that_diverged_are_used_for_nothing(shards, tmp_path):
    made = [straight(i) for i in range(4)]
    broken = {role: torch.full((10, 7), float("nan")) for role in PREDICTED}
    clean = fit_known(shards(made, name="a"), settings(), out=tmp_path / "clean")
    mixed = fit_known(shards([*made, broken], name="b", diverged={4}), settings(), out=tmp_path / "mixed")
    assert [known.facts["trajectories"]["diverged"] for known in (clean, mixed)] == [0, 1]
    assert all(same(clean, mixed, role) for role in PREDICTED)


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
    table = pd.read_csv(tmp_path / "meta_linear.csv")
    assert list(table) == COEFFICIENTS
    terms = table.set_index(["model", "role", "term"])["value"]
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


def test_under_the_relative_loss_every_trajectory_counts_alike_whatever_its_size_and_scale():
    """The loss of no change is then 1 on each, so it is 1 on all of them."""
    dice = torch.Generator().manual_seed(0)
    few, many = (torch.randn(count, 6, generator=dice) for count in (7, 300))
    answers = torch.randn(307, generator=dice)

    def loss(*trajectories, answers):
        return float(_Windows(list(trajectories), "none", relative=True).loss(answers))

    apart = [loss(few, answers=answers[:7]), loss(many, answers=answers[7:])]
    assert loss(few, many, answers=answers) == pytest.approx(sum(apart) / 2)
    scaled = torch.cat([1000 * answers[:7], answers[7:]])
    assert loss(1000 * few, many, answers=scaled) == pytest.approx(sum(apart) / 2)
    assert _Windows([few, many], "none", relative=True).plain()[0] == pytest.approx(1)
    still = torch.ones(5, 6)
    assert loss(still, many, answers=torch.cat([answers[:5], answers[7:]])) == pytest.approx(apart[1] / 2)
