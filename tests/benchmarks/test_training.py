"""The one training loop: seeds, phases, budgets, schedules, rate factors, carried optimisers, divergence."""

import copy
import itertools

import pytest
import torch

from benchmarks.data import load, normalise
from benchmarks.networks import build, head_and_normalisation
from benchmarks.settings import Recipe
from benchmarks.training import _batches, accuracy, evaluated, logits, recalibrate, schedule, show, train
from know.errors import KnowError

STANDING = 1e-30  # a learning rate that moves nothing: the settings forbid 0


def fit(dataset, *, network="mlp", seed=0, split=None, start=None, **options):
    """Train a network with the settings in `options`; the model and the outcome."""
    model = build(network, dataset.shape, len(dataset.classes), seed=5)
    model.load_state_dict(start or model.state_dict())
    extra = ("optimizer_state", "rate_factors", "after_step", "shown", "phase")
    carried = {key: options.pop(key) for key in extra if key in options}
    recipe = Recipe(**{"epochs": 1, "learning_rate": 1e-3, "batch_size": 64, **options})
    outcome = train(model, dataset, split or dataset.train.take(torch.arange(200)), recipe, seed=seed, **carried)
    return model, outcome


def changed(a: torch.nn.Module, b: torch.nn.Module) -> set[str]:
    """Names of the parameters that differ (by more than `STANDING` moves them)."""
    other = dict(b.named_parameters())
    return {name for name, tensor in a.named_parameters() if bool(((tensor - other[name]).abs() > 1e-25).any())}


def updates(outcome) -> int:
    """How often the optimiser of the last phase stepped."""
    (steps,) = {int(state["step"]) for state in outcome.optimizer["state"].values()}
    return steps


# seeds


def test_the_seed_alone_decides_the_weights(digits):
    first, _ = fit(digits, augment="shift", seed=1)
    torch.manual_seed(99)
    again, _ = fit(digits, augment="shift", seed=1)
    other, _ = fit(digits, augment="shift", seed=2)
    assert not changed(first, again)
    assert changed(first, other)


def test_training_leaves_the_global_random_state_alone(digits):
    state = torch.get_rng_state()
    fit(digits, augment="shift")
    assert torch.equal(torch.get_rng_state(), state)


# what is trained, and how long


def test_the_first_phase_moves_head_and_normalisation_only(digits):
    before = build("resnet8", digits.shape, 5, seed=5)
    still, _ = fit(digits, network="resnet8", learning_rate=STANDING)
    after, _ = fit(digits, network="resnet8", head_epochs=1, learning_rate=STANDING)
    assert not changed(before, still)
    assert changed(before, after) == head_and_normalisation(after)
    assert all(parameter.requires_grad for parameter in after.parameters())


def test_the_second_phase_moves_everything(digits):
    before = build("resnet8", digits.shape, 5, seed=5)
    after, _ = fit(digits, network="resnet8", head_epochs=1)
    assert changed(before, after) == {name for name, _ in before.named_parameters()}


@pytest.mark.parametrize("augment", ["none", "shift"])
def test_two_phases_one_by_one_on_epochs_made_before_are_both_at_once(digits, augment):
    options = {"network": "resnet8", "head_epochs": 2, "epochs": 2, "augment": augment, "seed": 3}
    recipe = Recipe(epochs=2, learning_rate=1e-3, batch_size=64, augment=augment)
    split = digits.train.take(torch.arange(200))
    epochs = show(digits, split, torch.arange(200)[None], recipe, [3])
    made = [list(epoch) for epoch in itertools.islice(epochs, 4)]
    together, _ = fit(digits, **options)
    head, _ = fit(digits, **options, shown=made, phase="head")
    after, _ = fit(digits, **options, start=head.state_dict(), shown=made[2:], phase="everything")
    assert changed(build("resnet8", digits.shape, 5, seed=5), head) == head_and_normalisation(head)
    for name, tensor in together.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(1, None, 4), (3, None, 12), (1, 7, 7), (9, 1, 1), (2, 4, 4)]
)
def test_steps_replace_epochs_exactly(digits, epochs, steps, expected):
    _, outcome = fit(digits, epochs=epochs, steps=steps)  # 200 images in batches of 64: 4 steps an epoch
    assert updates(outcome) == expected
    assert len(outcome.history) == -(-expected // 4)


def test_the_first_phase_comes_on_top_of_the_budget(digits):
    _, outcome = fit(digits, head_epochs=2, steps=8, head_learning_rate=0.5, schedule="cosine")
    assert updates(outcome) == 8  # two epochs, of which the rate is 1e-3 and half of it
    assert [row["learning_rate"] for row in outcome.history] == [0.5, 0.5, 1e-3, pytest.approx(5e-4)]


def test_the_learning_rate_of_the_search_overrides_the_recipes(digits):
    recipe = Recipe(epochs=1, learning_rate=1e-3, batch_size=64)
    model = build("mlp", digits.shape, 5, seed=5)
    train(model, digits, digits.train.take(torch.arange(200)), recipe, seed=0, learning_rate=4e-3)
    assert not changed(model, fit(digits, learning_rate=4e-3)[0])
    assert changed(model, fit(digits)[0])


def test_every_image_is_seen_once_an_epoch_and_never_alone():
    for n, size in itertools.product([2, 3, 9, 16, 17, 65], [2, 3, 8, 64]):
        batches = _batches(torch.randperm(n), size)
        assert sorted(torch.cat(batches).tolist()) == list(range(n))
        assert all(2 <= len(batch) <= size + 1 for batch in batches)


def test_a_last_batch_of_one_image_does_not_break_batch_normalisation(digits):
    split = digits.train.take(torch.arange(17))
    model, outcome = fit(digits, network="resnet8", split=split, batch_size=8)
    assert outcome.status == "ok"
    assert updates(outcome) == 2
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


# factors on the learning rate


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", ["second.weight", "head.bias"])
def test_a_factor_of_0_freezes_that_tensor_alone(digits, optimizer, name):
    before = build("mlp", digits.shape, 5, seed=5)
    after, _ = fit(digits, optimizer=optimizer, rate_factors={name: 0.0})
    assert changed(before, after) == {n for n, _ in before.named_parameters()} - {name}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_factor_of_2_on_everything_is_twice_the_learning_rate(digits, schedule):
    options = {"epochs": 2, "schedule": schedule}
    twice, outcome = fit(digits, learning_rate=2e-3, **options)
    factors = dict.fromkeys(dict(twice.named_parameters()), 2.0)
    doubled, own = fit(digits, learning_rate=1e-3, rate_factors=factors, **options)
    assert not changed(twice, doubled)
    assert [2 * row["learning_rate"] for row in own.history] == pytest.approx(
        [row["learning_rate"] for row in outcome.history]
    )


def test_a_factor_is_the_tensors_own_learning_rate(digits):
    """One step of Adam is the sign of the gradient: it grows with the factor, in that tensor alone."""
    before = dict(build("mlp", digits.shape, 5, seed=5).named_parameters())
    plain, _ = fit(digits, steps=1)
    after, _ = fit(digits, steps=1, rate_factors={"first.weight": 3.0})
    for (name, one), other in zip(plain.named_parameters(), after.parameters(), strict=True):
        expected = (3 if name == "first.weight" else 1) * (one - before[name])
        torch.testing.assert_close(other - before[name], expected, atol=1e-7, rtol=1e-4)


def test_factors_do_not_act_in_the_first_phase(digits):
    head = {"head.weight": 0.0, "head.bias": 0.0}
    before = build("mlp", digits.shape, 5, seed=5)
    after, _ = fit(digits, head_epochs=1, learning_rate=STANDING, rate_factors=head)
    assert changed(before, after) == set(head)


# after every step


@pytest.mark.parametrize(("options", "steps"), [({"epochs": 2}, 8), ({"steps": 5}, 5), ({"head_epochs": 2}, 4)])
def test_after_step_is_called_in_order_in_the_phase_that_trains_everything(digits, options, steps):
    calls = []
    observed, _ = fit(digits, after_step=lambda *call: calls.append(call), **options)
    assert calls == [(k, steps) for k in range(1, steps + 1)]
    assert not changed(observed, fit(digits, **options)[0])


def test_after_step_sees_the_weights_after_the_step(digits):
    model, seen = build("mlp", digits.shape, 5, seed=5), []
    recipe = Recipe(epochs=1, learning_rate=1e-3, batch_size=64)
    split = digits.train.take(torch.arange(200))
    train(model, digits, split, recipe, seed=0, after_step=lambda *_: seen.append(copy.deepcopy(model.state_dict())))
    assert all(torch.equal(seen[-1][name], tensor) for name, tensor in model.state_dict().items())
    assert not torch.equal(seen[0]["head.bias"], seen[1]["head.bias"])


# learning-rate schedules


@pytest.mark.parametrize("name", ["constant", "cosine"])
@pytest.mark.parametrize(("budget", "per_epoch"), [(100, 10), (95, 10), (3, 10), (1, 1)])
def test_schedules_stay_above_0_and_reach_1(name, budget, per_epoch):
    factors = [schedule(name, step, budget, per_epoch) for step in range(budget)]
    assert min(factors) > 0
    assert max(factors) == 1


def test_cosine_falls_by_epoch_from_1_towards_0():
    factors = [schedule("cosine", step, 100, 10) for step in range(100)]
    assert set(factors[:10]) == {1.0}
    assert len(set(factors)) == 10
    assert factors == sorted(factors, reverse=True)
    assert factors[50] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.0245, abs=1e-3)  # (1 + cos(0.9 pi)) / 2


def test_the_schedule_is_what_the_loop_uses(digits):
    _, outcome = fit(digits, epochs=4, schedule="cosine", learning_rate=0.01)
    expected = [0.01 * schedule("cosine", 4 * epoch, 16, 4) for epoch in range(4)]
    assert [row["learning_rate"] for row in outcome.history] == pytest.approx(expected)


# the optimiser's state


def full_batch(digits, **options):
    """The same batch at every step, so that nothing but the optimiser's state tells one step from another."""
    return fit(digits, batch_size=200, **options)


def largest_difference(a, b) -> float:
    return max(float((p - q).abs().max().detach()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_carried_state_continues_as_if_uninterrupted(digits, optimizer):
    whole, _ = full_batch(digits, epochs=6, optimizer=optimizer)
    half, outcome = full_batch(digits, epochs=3, optimizer=optimizer)
    state = copy.deepcopy(outcome.optimizer)
    carried, _ = full_batch(digits, epochs=3, optimizer=optimizer, start=half.state_dict(), optimizer_state=state)
    fresh, _ = full_batch(digits, epochs=3, optimizer=optimizer, start=half.state_dict())
    assert largest_difference(whole, carried) < 1e-5
    assert largest_difference(whole, fresh) > 10 * largest_difference(whole, carried) + 1e-4


def test_a_carried_state_and_rate_factors_do_not_go_together(digits):
    half, outcome = full_batch(digits)
    with pytest.raises(KnowError, match="kept by position"):
        full_batch(digits, start=half.state_dict(), optimizer_state=outcome.optimizer, rate_factors={"head.bias": 2.0})


def test_a_carried_state_is_not_changed(digits):
    half, outcome = full_batch(digits, epochs=3)
    runs = [full_batch(digits, start=half.state_dict(), optimizer_state=outcome.optimizer)[0] for _ in range(2)]
    assert not changed(*runs)


def test_a_carried_state_brings_moments_and_not_the_old_recipe(digits):
    _, outcome = full_batch(digits)
    plain, decayed = (
        full_batch(digits, weight_decay=decay, optimizer_state=copy.deepcopy(outcome.optimizer))[0]
        for decay in (0.0, 0.5)
    )
    assert changed(plain, decayed)


# results


@pytest.mark.parametrize(("network", "epochs"), [("mlp", 8), ("plaincnn", 12), ("resnet8", 3)])
def test_it_learns_digits(network, epochs):
    digits = load("digits")
    model, outcome = fit(digits, network=network, split=digits.train, epochs=epochs, learning_rate=4e-3)
    assert accuracy(model, digits, digits.test) > 0.8
    assert outcome.status == "ok"
    losses = [row["loss"] for row in outcome.history]
    assert losses[-1] < 0.5 * losses[0]
    assert [row["epoch"] for row in outcome.history] == list(range(1, epochs + 1))
    assert outcome.history[-1]["accuracy"] > outcome.history[0]["accuracy"]


@pytest.mark.parametrize("head_epochs", [0, 2])
def test_divergence_is_a_status_and_no_exception(digits, head_epochs):
    rates = {"learning_rate": 1e30, "head_learning_rate": 1e30}
    model, outcome = fit(digits, optimizer="sgd", epochs=50, head_epochs=head_epochs, **rates)
    assert outcome.status == "diverged"
    assert len(outcome.history) < 50
    assert 0 <= accuracy(model, digits, digits.test) < 0.5


def test_weights_that_are_not_finite_answer_nothing_correctly(digits):
    model = build("mlp", digits.shape, 5)
    torch.nn.init.constant_(model.head.weight, float("nan"))
    assert accuracy(model, digits, digits.test) == 0


def test_recalibration_measures_running_statistics_and_changes_no_parameter(digits):
    model = build("normcnn", digits.shape, 5, seed=5)
    for norm in (model.norm1, model.norm2):
        norm.running_mean.fill_(7)
        norm.running_var.fill_(7)
    before, split = copy.deepcopy(model), digits.train.take(torch.arange(128))
    recalibrate(model, digits, split, batch=64)
    assert not changed(before, model)
    assert model.training == before.training
    with torch.no_grad():
        outputs = [model.conv1(normalise(images, digits)) for images in split.images.split(64)]
    means = torch.stack([x.mean((0, 2, 3)) for x in outputs])
    variances = torch.stack([x.var((0, 2, 3)) for x in outputs])
    torch.testing.assert_close(model.norm1.running_mean, means.mean(0))
    torch.testing.assert_close(model.norm1.running_var, variances.mean(0))
    assert not torch.allclose(model.norm2.running_mean, before.norm2.running_mean)
    again = copy.deepcopy(model)  # what was measured before does not matter
    recalibrate(again, digits, split, batch=64)
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), model.buffers(), strict=True))


@pytest.mark.parametrize("network", ["mlp", "vit_tiny"])
def test_there_is_nothing_to_recalibrate_without_running_statistics(digits, network):
    model = build(network, digits.shape, 5)
    before = copy.deepcopy(model.state_dict())
    recalibrate(model, digits, digits.train.take(torch.arange(20)))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_evaluation_does_not_depend_on_its_batches_and_leaves_the_model_as_it_was(digits):
    model = build("resnet8", digits.shape, 5).train()
    before = copy.deepcopy(model.state_dict())
    scores = logits(model, evaluated(digits, digits.test, batch=7))
    torch.testing.assert_close(scores, logits(model, evaluated(digits, digits.test)))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    share = float((scores.argmax(1) == digits.test.labels).double().mean())
    assert accuracy(model, digits, digits.test) == pytest.approx(share)
