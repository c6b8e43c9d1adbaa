"""Many networks at once: the same as one after another, whatever stands beside them."""

import pytest
import torch

from benchmarks.networks import build
from benchmarks.settings import Recipe
from benchmarks.stacked import Stacked, scored
from benchmarks.training import accuracy, evaluated, logits, train
from know.errors import KnowError

COUNT = 3
RATES = [1e-3, 2e-3, 5e-4]
NETWORKS = ["mlp", "plaincnn", "normcnn", "resnet8", "densenet", "shufflenet", "mobilenetv2", "vit_tiny"]


def models(network="mlp"):
    return [build(network, (1, 8, 8), 5, seed=10 + k) for k in range(COUNT)]


@pytest.fixture(scope="module")
def members(digits):
    """Images of each network, (COUNT, 120): in part the same ones."""
    dice = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(len(digits.train), generator=dice)[:120] for _ in range(COUNT)])


def recipe(**options) -> Recipe:
    return Recipe(**{"epochs": 2, "learning_rate": 1e-3, "batch_size": 32, "schedule": "cosine", **options})


def together(digits, members, plan, network="mlp", *, which=range(COUNT), factors=None, **options):
    networks = Stacked([models(network)[k] for k in which])
    outcomes = networks.train(
        digits,
        digits.train,
        members[list(which)],
        plan,
        seeds=[100 + k for k in which],
        learning_rates=[RATES[k] for k in which],
        rate_factors=factors,
        **options,
    )
    return networks, outcomes


def alone(digits, members, plan, network="mlp", factors=None):
    trained = models(network)
    for k, model in enumerate(trained):
        own = {"learning_rate": RATES[k], "rate_factors": factors[k] if factors else None}
        train(model, digits, digits.train.take(members[k]), plan, seed=100 + k, **own)
    return trained


def deviations(networks, trained) -> torch.Tensor:
    """Of every single weight and statistic."""
    pairs = zip(networks.states(), trained, strict=True)
    return torch.cat([(s[n] - t).abs().flatten().float() for s, model in pairs for n, t in model.state_dict().items()])


def assert_same(networks, trained, tolerance=1e-4):
    assert deviations(networks, trained).max() < tolerance


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_come_out_as_one_after_another(digits, members, network):
    plan = recipe(optimizer="sgd", steps=6, augment="shift")
    networks, _ = together(digits, members, plan, network)
    # in densenet, normalisation over maps of one pixel makes rounding larger
    assert_same(networks, alone(digits, members, plan, network), 1e-3 if network == "densenet" else 1e-4)


@pytest.mark.parametrize("network", ["mlp", "plaincnn", "resnet8", "vit_tiny"])
def test_so_they_do_with_adam_but_for_weights_without_a_gradient(digits, members, network):
    """Adam makes a step of either sign of a gradient that is 0 but for rounding, as normcnn's biases before their
    normalisation have it, and here and there a single weight of the others.
    """
    plan = recipe(steps=6, augment="shift")
    networks, _ = together(digits, members, plan, network)
    found = deviations(networks, alone(digits, members, plan, network))
    assert found.quantile(0.99) < 1e-4
    assert found.max() < 6 * max(RATES)
    before = deviations(Stacked(models(network)), alone(digits, members, plan, network))
    assert before.quantile(0.5) > 1e-4  # they have moved


@pytest.mark.parametrize(
    "options",
    [
        {"augment": "affine"},
        {"head_epochs": 1},
        {"head_epochs": 2, "optimizer": "sgd"},
        {"weight_decay": 0.1},
        {"schedule": "constant", "batch_size": 50},
        {"compile": True, "epochs": 1},
    ],
    ids=str,
)
def test_every_part_of_a_recipe_means_the_same(digits, members, options):
    networks, outcomes = together(digits, members, recipe(**options))
    assert_same(networks, alone(digits, members, recipe(**options)))
    for k, outcome in enumerate(outcomes):
        model = models()[k]
        own = train(
            model, digits, digits.train.take(members[k]), recipe(**options), seed=100 + k, learning_rate=RATES[k]
        )
        assert outcome.status == own.status
        assert [row["epoch"] for row in outcome.history] == [row["epoch"] for row in own.history]
        for key in ("loss", "accuracy", "learning_rate"):
            assert [r[key] for r in outcome.history] == pytest.approx([r[key] for r in own.history], abs=1e-5)


def test_each_network_has_its_own_factors_on_the_rate(digits, members):
    factors = [{}, {"head.weight": 3.0}, {"first.weight": 0.0, "head.weight": 0.5}]
    networks, _ = together(digits, members, recipe(head_epochs=1), factors=factors)
    assert_same(networks, alone(digits, members, recipe(head_epochs=1), factors=factors))


def test_what_stands_beside_a_network_does_not_matter(digits, members):
    networks, _ = together(digits, members, recipe(), "plaincnn")
    other_order, _ = together(digits, members, recipe(), "plaincnn", which=[2, 0])
    for k, state in zip([2, 0], other_order.states(), strict=True):
        for name, tensor in networks.states()[k].items():
            torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-5)


def test_the_models_that_are_given_stay_as_they_are(digits, members):
    given = models("normcnn")
    before = [{n: t.clone() for n, t in model.state_dict().items()} for model in given]
    Stacked(given).train(digits, digits.train, members, recipe(), seeds=range(COUNT))
    assert all(torch.equal(t, b[n]) for m, b in zip(given, before, strict=True) for n, t in m.state_dict().items())


def test_a_carried_optimiser_goes_on_and_another_starts_afresh(digits, members):
    """As with `train`: two calls of one epoch of the whole set are one of two where the moments are carried."""
    whole = recipe(batch_size=120, schedule="constant", epochs=4)
    half = whole.model_copy(update={"epochs": 2})
    expected, _ = together(digits, members, whole)
    deviation = {}
    for carry in (True, False):
        networks, _ = together(digits, members, half)
        networks.train(digits, digits.train, members, half, seeds=[7] * COUNT, learning_rates=RATES, carry=carry)
        pairs = zip(networks.states(), expected.states(), strict=True)
        deviation[carry] = max(float((a[n] - b[n]).abs().max()) for a, b in pairs for n in a)
    assert deviation[True] < 1e-5
    assert deviation[False] > 10 * deviation[True] + 1e-4


def test_a_network_that_diverges_is_told_and_leaves_the_others_alone(digits, members):
    plan = recipe(optimizer="sgd", epochs=6)
    networks = Stacked(models())
    rates = [1e-3, 1e30, 1e-3]
    outcomes = networks.train(digits, digits.train, members, plan, seeds=[100, 101, 102], learning_rates=rates)
    assert [outcome.status for outcome in outcomes] == ["ok", "diverged", "ok"]
    assert len(outcomes[1].history) < 6 == len(outcomes[0].history)
    single = models()[0]
    train(single, digits, digits.train.take(members[0]), plan, seed=100, learning_rate=1e-3)
    for name, tensor in single.state_dict().items():
        torch.testing.assert_close(networks.states()[0][name], tensor, atol=1e-5, rtol=1e-5)
    accuracies, _ = scored(networks.logits(digits, digits.test), digits.test.labels)
    assert accuracies[1] < 0.5


@pytest.mark.parametrize("network", ["mlp", "normcnn"])
def test_scores_are_those_of_each_network(digits, members, network):
    networks, trained = Stacked(models(network)), models(network)
    shared, own = networks.logits(digits, digits.test), networks.logits(digits, digits.train, members)
    for k, model in enumerate(trained):
        torch.testing.assert_close(shared[k], logits(model, evaluated(digits, digits.test)), atol=1e-5, rtol=1e-5)
        taken = digits.train.take(members[k])
        torch.testing.assert_close(own[k], logits(model, evaluated(digits, taken)), atol=1e-5, rtol=1e-5)
    accuracies, losses = scored(shared, digits.test.labels)
    assert accuracies == pytest.approx([accuracy(model, digits, digits.test) for model in trained], abs=1e-9)
    expected = [float(torch.nn.functional.cross_entropy(s, digits.test.labels)) for s in shared]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert scored(shared * float("nan"), digits.test.labels)[0] == [0] * COUNT


def test_counts_that_do_not_fit_are_refused(digits, members):
    with pytest.raises(KnowError, match="3 stacked networks"):
        Stacked(models()).train(digits, digits.train, members, recipe(), seeds=[1, 2])
    networks = Stacked(models())
    with pytest.raises(KnowError, match="head_epochs"):
        networks.train(digits, digits.train, members, recipe(head_epochs=1), seeds=range(3), carry=True)
