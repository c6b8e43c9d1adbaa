"""Attempts at what the compute of a forgetting trajectory can buy: their budgets, and what defines each of them."""

import functools

import pandas as pd
import pytest
import torch

from benchmarks import exploration
from benchmarks.exploration import ATTEMPTS, OF_FORGETTING, OF_PRETRAINING, Budget, chosen, exists, lacking, mixed
from benchmarks.report import explored
from benchmarks.settings import Forgetting, Origin, Recipe
from benchmarks.store import Store
from benchmarks.trajectories import make_origin, source_run
from know.errors import KnowError
from know.trajectory import Trajectory

ORIGIN = Origin("digits:0-4", "normcnn")
RECIPE = Recipe(epochs=2, learning_rate=3e-3, batch_size=16, schedule="cosine")
FORGETTING = Forgetting(step=Recipe(epochs=4, learning_rate=1e-3, batch_size=16), smallest=16)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=CUDA)])
def place(tmp_path_factory, request):
    """The run that makes theta_0, and its forgetting trajectory."""
    folder = tmp_path_factory.mktemp("exploration")
    store, device = Store(folder / "store", forced=False), request.param
    out = folder / "made"
    asked = {"references": [], "store": store, "out": out, "device": device}
    make_origin(ORIGIN, ["e0"], ["overflow"], RECIPE, FORGETTING, **asked)
    run = source_run(ORIGIN, "e0", RECIPE, FORGETTING, store=store, device=device)
    return run, Trajectory.load(out / "e0" / "overflow")


@pytest.fixture
def budget(place, monkeypatch):
    """A fresh budget of the forgetting steps' images."""
    monkeypatch.setattr(exploration, "HELD_OUT", 20)
    monkeypatch.setattr(exploration, "CHOICE", 12 * 20)
    run, trajectory = place
    return Budget(run, trajectory, run.forgetting_images)


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_way_in_turns_goes_on_where_it_was(budget):
    way = {"split": budget.d0}
    first, _, optimizer = budget.run_on(160, "one", **way)
    last, mean, _ = budget.run_on(160, "two", start=(first, optimizer), average=0.0, **way)
    fresh, _, _ = budget.run_on(160, "two", start=(first, budget.run.optimizer), **way)
    assert not same(last, fresh)  # the optimiser's state counts
    assert not same(last, mean)
    assert same(last, budget.run_on(160, "two", start=(first, optimizer), **way)[0])


CHEAP = ("theta_0", "shrunk, by role", "shrunk and perturbed", "shorter training")
"""Attempts that ask for less than a budget holds."""


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_an_attempt_shows_what_its_budget_has_and_is_the_same_again(budget, place, attempt):
    if reason := lacking(attempt):
        pytest.skip(reason)
    function, options = ATTEMPTS[attempt]
    budget.images = budget.run.images if attempt.startswith(OF_PRETRAINING) else budget.images
    made = function(budget, **options)
    again = Budget(*place, budget.images)
    assert same(made, function(again, **options))
    assert budget.shown == again.shown
    # what needs the forgetting trajectory makes its choices on top of it; nobody goes over by more than rounding
    extra = 12 * 20 if attempt.startswith((*OF_FORGETTING, "further, more")) else 0
    assert budget.shown <= budget.images + extra + 4 * FORGETTING.step.batch_size
    assert attempt in CHEAP or budget.shown >= 0.9 * budget.images
    assert attempt == "theta_0" or not same(made, budget.calibrated(budget.theta_0))


def test_the_oracle_is_that_of_the_suites_and_falls_as_theta_0_does_where_it_is_asked_to(budget, monkeypatch):
    rates, real = [], exploration.train

    def spy(*arguments, **options):
        outcome = real(*arguments, **options)
        rates.append([epoch["learning_rate"] for epoch in outcome.history])
        return outcome

    monkeypatch.setattr(exploration, "train", spy)
    made = exploration.oracle(budget)
    assert same(made, budget.calibrated(budget.run.pretrain(2, steps=1)))
    assert not same(made, exploration.oracle(budget, rates_of_theta_0=True))
    # when twice the data have been seen once, the training of theta_0 is in the second of its two epochs
    assert [each[0] for each in rates] == [RECIPE.learning_rate, pytest.approx(RECIPE.learning_rate / 2)]


def test_what_takes_the_place_of_theta_0_or_needs_its_snapshots_exists_at_one_budget():
    found = {attempt: [budget for budget in explored.BUDGETS if exists(attempt, budget)] for attempt in ATTEMPTS}
    assert found["oracle"] == ["x1"]
    assert found["combination, by role"] == ["forgetting"]
    assert found["further"] == list(explored.BUDGETS)


@pytest.fixture
def iterates(monkeypatch):
    """The weights after every step of what is trained."""
    found, real = [], exploration.train

    def spy(model, *arguments, after_step, **options):
        def record(*steps):
            found.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            after_step(*steps)

        return real(model, *arguments, after_step=record, **options)

    monkeypatch.setattr(exploration, "train", spy)
    return found


def test_an_average_is_the_mean_of_the_iterates(budget, iterates):
    made = budget.train(10 * 16, "mine", average=0.5)
    late = iterates[5:]
    assert len(iterates) == 10
    for name in ("conv1.weight", "head.bias"):
        mean = torch.stack([state[name].double() for state in late]).mean(0)
        torch.testing.assert_close(made[name].double(), mean, atol=1e-6, rtol=0)


def test_what_is_merged_is_where_a_falling_rate_would_have_led_the_same_gradients(budget, iterates):
    made = budget.train(10 * 16, "mine", average=0.0, decay=True)
    for name in ("conv1.weight", "head.bias"):
        way = torch.stack([state[name].double() for state in [budget.theta_0, *iterates]])
        fallen = way[0] + sum((1 - (i / 10) ** 0.5) * (way[i + 1] - way[i]) for i in range(10))
        torch.testing.assert_close(made[name].double(), fallen, atol=1e-6, rtol=0)


def test_no_expert_labels_an_image_that_it_saw(budget, monkeypatch):
    seen, asked, real = {}, [], Budget.train

    def images(split):
        return {tuple(image.flatten().tolist()) for image in split.images}

    def train(self, count, name, *, split=None, **how):
        state = real(self, count, name, split=split, **how)
        if name.startswith("expert"):
            seen[id(state)] = (state, images(split))
        return state

    def labels(self, state, split, real=Budget.labels):
        asked.append((seen[id(state)][1], images(split)))
        return real(self, state, split)

    monkeypatch.setattr(Budget, "train", train)
    monkeypatch.setattr(Budget, "labels", labels)
    exploration.distilled(budget)
    assert len(asked) == 2
    assert all(not known & shown for known, shown in asked)


def test_held_out_images_are_not_in_d0(budget):
    rows = [{tuple(image.flatten().tolist()) for image in split.images} for split in (budget.d0, budget.held_out())]
    assert len(rows[1]) == 20
    assert not rows[0] & rows[1]


def test_what_is_chosen_has_no_higher_loss_than_theta_0_and_keeps_it_where_nothing_moves(budget):
    still = chosen(budget, [budget.theta_0], layers=True)
    assert same(still, budget.calibrated(budget.theta_0))
    split = budget.held_out()
    images = next(exploration.evaluated(budget.run.dataset, split, len(split)))

    @torch.no_grad()
    def loss(state):
        model = budget.model(state).train()
        return float(torch.nn.functional.cross_entropy(model(images), split.labels))

    found = functools.partial(chosen, budget, [budget.train(160, "mine"), budget.trajectory.states[0]])
    by_role, by_layer = loss(found(layers=False)), loss(found(layers=True))
    assert by_role <= loss(budget.theta_0) + 1e-6
    assert by_layer <= loss(budget.theta_0) + 1e-6


def test_shrinking_multiplies_all_weights_of_a_role_by_one_number(budget):
    start, names = budget.theta_0, exploration.only_predicted(exploration.roles(budget.theta_0))
    found, factors = exploration.shrunk(budget), {}
    for name, role in names.items():
        moved = start[name] != 0
        factors.setdefault(role, []).append(found[name][moved] / start[name][moved])
    for role, each in factors.items():
        every = torch.cat([part.flatten() for part in each])
        torch.testing.assert_close(every, every[:1].expand_as(every), msg=role)


def test_a_shorter_training_of_full_length_is_that_of_theta_0(budget):
    assert same(exploration.shorter(budget, 1.0), budget.calibrated(budget.theta_0))


def test_a_jackknife_of_weights_that_are_linear_in_one_over_n_is_exact():
    def at(n):
        return {"weight": torch.tensor([2.0, -1.0]) + torch.tensor([30.0, 7.0]) / n}

    limit = mixed({0: 2.0, 1: -1.0}, [at(100), mixed({0: 0.5, 1: 0.5}, [at(50), at(50)])])
    torch.testing.assert_close(limit["weight"], torch.tensor([2.0, -1.0]))


def fine_tuned(accuracies: dict[str, dict[float, tuple[float, ...]]]) -> pd.DataFrame:
    """Rows of targets.csv. accuracies: in percent by attempt and rate, one for each trajectory."""
    return pd.DataFrame(
        {"network": "n", "budget": "forgetting", "attempt": attempt, "trajectory": f"e{k}", "fine_tune": 0}
        | {"learning_rate": rate, "validation_accuracy": value / 100}
        for attempt, rates in accuracies.items()
        for rate, values in rates.items()
        for k, value in enumerate(values)
    )


def test_rates_of_a_trajectory_are_chosen_on_the_others():
    accuracies = {"further": {1e-3: (50, 50, 50), 2e-3: (51, 51, 51)}, "mine": {1e-3: (54, 54, 60), 2e-3: (55, 57, 50)}}
    targets = fine_tuned(accuracies)
    table = explored.tuned(targets)["n", "forgetting"]
    # the first two trajectories see 1e-3 win on the others, the third 2e-3
    assert list(table["mine"].round(9)) == [54, 54, 50]
    assert list(table["further"].round(9)) == [51, 51, 51]
    assert list(explored.tuned(targets, alike=True)["n", "forgetting"]["mine"].round(9)) == [54, 54, 60]


def test_only_what_is_seen_by_both_ways_to_choose_rates_is_marked():
    """One trajectory of `lucky` and of theta_0 gets the worse of two rates; `better` gains at each."""
    accuracies = {
        "theta_0": {1e-3: (50, 50, 50, 54), 2e-3: (51, 51, 51, 50)},
        "better": {1e-3: (56, 57, 56, 60), 2e-3: (57, 57, 57, 56)},
        "lucky": {1e-3: (51, 51, 51, 51), 2e-3: (51.4, 51.4, 51.4, 51)},
    }
    targets = fine_tuned(accuracies)
    own, alike = (explored.gains(targets, alike=alike).set_index("attempt") for alike in (False, True))
    assert own.loc["lucky", "low"] > 0 > alike.loc["lucky", "low"]
    assert min(own.loc["better", "low"], alike.loc["better", "low"]) > 0
    texts = explored.on_targets(targets).set_index("attempt").iloc[:, 0]
    assert texts["better"].endswith(" *")
    assert not texts["lucky"].endswith("*")


def test_on_the_mean_of_all_networks_each_counts_once():
    gains = {
        "a": {"theta_0": (0, 0), "further": (1, 3)},
        "b": {"theta_0": (0, 0, 0), "further": (5, 6, 7), "own": (9, 9, 9)},
    }
    targets = pd.DataFrame(
        {"network": network, "budget": "forgetting", "attempt": attempt, "trajectory": f"e{k}", "fine_tune": 0}
        | {"learning_rate": 1e-3, "validation_accuracy": (40 + k + gain) / 100}
        for network, attempts in gains.items()
        for attempt, values in attempts.items()
        for k, gain in enumerate(values)
    )
    found = explored.gains_of_all(targets)
    assert list(found["attempt"]) == ["further"]  # what one network lacks has no mean of all
    assert found["mean"].item() == pytest.approx((2 + 6) / 2)
    assert explored.gains_of_all(targets[targets["network"] == "a"]).empty


def test_the_page_asks_every_attempt_beside_the_same_theta_0(tmp_path):
    """theta_0 is fine-tuned once, beside the smallest budget, and takes none of the others."""
    gains = {("theta_0", "forgetting"): (0, 0, 0), ("further", "forgetting"): (1, 2, 3), ("further", "x3"): (2, 4, 6)}
    rows = [
        {"network": "n", "budget": budget, "attempt": attempt, "trajectory": f"e{k}", "theta_0": f"{k}e5"}
        | {"learning_rate": 1e-3, "fine_tune": repeat, "validation_accuracy": (40 + k + gain) / 100}
        for (attempt, budget), own in gains.items()
        for k, gain in enumerate(own)
        for repeat in range(2)
    ]
    measured = {"images": 7, "source_accuracy": 0.3, "source_loss": 2.0}

    def add(theta_0=None):
        for k in range(3):
            own = [row | ({"theta_0": theta_0} if theta_0 else {}) for row in rows if row["trajectory"] == f"e{k}"]
            sources = [row | measured for row in own[::2] if row["budget"] != "x3"]
            exploration.add(tmp_path, [{key: row[key] for key in exploration.COLUMNS} for row in sources], own)

    add("other")
    tables = [(tmp_path / name).read_text() for name in ("sources.csv", "targets.csv")]
    assert all("other" in table for table in tables)
    add()  # what began at another theta_0 goes
    tables = [(tmp_path / name).read_text() for name in ("sources.csv", "targets.csv")]
    assert not any("other" in table for table in tables)
    add()  # what is made again takes its place
    assert tables == [(tmp_path / name).read_text() for name in ("sources.csv", "targets.csv")]
    page = explored.page(tmp_path)
    assert "| attempt | n, forgetting, n = 3 | n, x3, n = 3 |" in page
    assert "| further | +2.00 [-0.48, +4.48] | +4.00 [-0.97, +8.97] |" in page
    assert "| theta_0 | +0.00 [+0.00, +0.00] |" in page
    beside_further = page.partition("minus *further*, which asks more")[2]
    assert "| attempt | n, forgetting, n = 3 |" in beside_further  # at x3 nothing else was tried
    assert "| theta_0 | -2.00 [-4.48, +0.48] |" in beside_further


@pytest.mark.parametrize("name", ["sources", "targets"])
def test_no_page_is_made_from_rows_of_two_theta_0(tmp_path, name):
    rows = [
        {"network": "n", "budget": "x1", "attempt": attempt, "trajectory": "e0", "theta_0": "a"}
        | {"learning_rate": 1e-3, "fine_tune": 0, "validation_accuracy": 0.4, "source_accuracy": 0.3}
        for attempt in ("theta_0", "further")
    ]
    for table in ("sources", "targets"):
        rows[1]["theta_0"] = "b" if table == name else "a"
        pd.DataFrame(rows).to_csv(tmp_path / f"{table}.csv", index=False)
    with pytest.raises(KnowError, match="rows of n, e0 begin at different theta_0"):
        explored.page(tmp_path)
