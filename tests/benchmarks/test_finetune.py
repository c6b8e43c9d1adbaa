"""Fine-tuning of one arm, the accuracy of predicted weights on the source, and the memory of results."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks import finetune
from benchmarks.data import GroupedDataset, Split, load
from benchmarks.finetune import FineTune, Result, Start, fine_tune, fine_tune_stacked, source_accuracy, target_split
from benchmarks.networks import build, head_name, normalisation
from benchmarks.settings import Recipe, Transfer
from benchmarks.training import accuracy, recalibrate
from know.errors import KnowError

RATE = 4e-4
GRID = [1e-4 * 2**k for k in range(6)]
RECIPE = Recipe(epochs=1, learning_rate=RATE, batch_size=32, augment="shift", head_epochs=1)
SETTINGS = Transfer(recipe=RECIPE, images=64, validation=60, grid=GRID)


@pytest.fixture(scope="module")
def target():
    return load("digits:5-9")


# the split of the target


@pytest.mark.parametrize("seed", [0, 1])
def test_training_and_validation_images_are_disjoint_and_shares_are_prefixes(target, seed):
    splits = {share: target_split(target, SETTINGS, share, seed) for share in (0.25, 0.5, 1.0)}
    whole, validation = splits[1.0]
    assert (len(whole), len(validation)) == (64, 60)
    assert len({*whole.tolist(), *validation.tolist()}) == 124
    for share, (part, same) in splits.items():
        assert len(part) == 64 * share
        assert torch.equal(part, whole[: len(part)])
        assert torch.equal(same, validation)
    other, _ = target_split(target, SETTINGS, 1.0, seed + 5)
    assert not torch.equal(other, whole)


def test_a_target_that_is_too_small_is_refused(target):
    total = len(target.train)
    full = SETTINGS.model_copy(update={"images": total - 60})
    assert sum(map(len, target_split(target, full, 1.0, 0))) == total
    with pytest.raises(KnowError, match=rf"digits:5-9 has {total} .* is {total + 1}"):
        target_split(target, SETTINGS.model_copy(update={"images": total - 59}), 1.0, 0)


def grouped(sizes: list[int], order: int) -> GroupedDataset:
    """Blank images in groups of these sizes, in a random order of rows."""
    groups = torch.repeat_interleave(torch.arange(len(sizes)) * 10, torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(order))]
    split = Split(torch.zeros(len(groups), 1, 2, 2, dtype=torch.uint8), torch.zeros(len(groups)).long())
    one = torch.ones(1)
    return GroupedDataset("films", split, split, ("a",), "", one, one, flip=False, groups=groups)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=4, max_size=60),
    images=st.integers(4, 60),
    validation=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_no_group_is_both_trained_on_and_validated_on_and_shares_are_prefixes(sizes, images, validation, seed):
    films = grouped(sizes, seed)
    settings = SETTINGS.model_copy(update={"images": images, "validation": validation})
    try:
        splits = {share: target_split(films, settings, share, seed) for share in (0.25, 0.5, 1.0)}
    except KnowError:
        assert sum(sizes) < images + validation + max(sizes)  # else whole groups fill both parts
        return
    whole, held_out = splits[1.0]
    assert (len(whole.unique()), len(held_out.unique())) == (images, validation)
    assert not {*films.groups[whole].tolist()} & {*films.groups[held_out].tolist()}
    for share, (part, same) in splits.items():
        assert torch.equal(part, whole[: round(share * images)])
        assert torch.equal(same, held_out)


def test_both_parts_show_many_groups():
    """1,000 images and 2,000 for validation of 1,306 films of 7: a third of the films is trained on."""
    films = grouped([7] * 1306, 0)
    settings = SETTINGS.model_copy(update={"images": 1000, "validation": 2000})
    trained, validated = (films.groups[rows].unique() for rows in target_split(films, settings, 1.0, 3))
    assert 350 < len(trained) <= 436
    assert 700 < len(validated) <= 871


def test_groups_that_cannot_be_divided_are_refused():
    settings = SETTINGS.model_copy(update={"images": 10, "validation": 10})
    with pytest.raises(KnowError, match=r"films has 2 groups .* 10 images and 10 for validation"):
        target_split(grouped([30, 5], 0), settings, 1.0, 0)


# fine-tuning


@pytest.fixture
def seen(monkeypatch):
    """What the training loop was handed in every fine-tune: first weights, images, seed, learning rate."""
    calls, real = [], finetune.train

    def spy(model, dataset, split, recipe, **options):
        if options["phase"] == "head":
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            calls.append({"weights": weights, "images": split.images})
        calls[-1] |= options
        return real(model, dataset, split, recipe, **options)

    monkeypatch.setattr(finetune, "train", spy)
    return calls


def tune(target, start, *, share=1.0, learning_rate=RATE, seed=7, test=True, network="mlp") -> Result:
    start = start if isinstance(start, Start) else Start(start)
    options = {"share": share, "learning_rate": learning_rate, "seed": seed, "test": test}
    return fine_tune(FineTune(start, **options), network, target, SETTINGS)


def weights(seed: int, network: str = "mlp", classes: int = 5) -> dict[str, torch.Tensor]:
    return build(network, (1, 8, 8), classes, seed=seed).state_dict()


def used(network: str = "normcnn") -> dict[str, torch.Tensor]:
    """Weights whose normalisation parameters and running statistics are no fresh network's."""
    state = weights(0, network)
    return {n: t + 0.5 if "norm" in n and t.is_floating_point() else t for n, t in state.items()}


def test_the_learning_rate_is_in_no_seed(target, seen):
    tune(target, weights(0), learning_rate=GRID[0])
    tune(target, weights(0), learning_rate=GRID[5])
    first, second = seen
    assert (first["learning_rate"], second["learning_rate"]) == (GRID[0], GRID[5])
    assert first["seed"] == second["seed"]
    assert torch.equal(first["images"], second["images"])
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


@pytest.mark.parametrize("kept", [finetune.KEPT, 0])
def test_what_fine_tunes_share_changes_none_of_them(target, kept):
    settings = SETTINGS.model_copy(update={"recipe": SETTINGS.recipe.model_copy(update={"augment": "shift"})})
    starts = [Start(used()), Start(weights(1, "normcnn"), {"conv2.weight": 2.0}, "recalibrate")]
    asked = itertools.product(starts, GRID[:2], [7, 8], [1.0, 0.5])
    requests = [FineTune(start, share, rate, seed, False) for start, rate, seed, share in asked]
    tuner = finetune.FineTuner("normcnn", target, settings, keep=kept)
    results = [tuner(request) for request in requests]
    assert results == [fine_tune(request, "normcnn", target, settings) for request in requests]
    assert len(set(map(str, results))) == len(requests)


def test_all_starts_get_the_same_head_images_and_order(target, seen):
    tune(target, weights(0))
    tune(target, Start(weights(1), {"first.weight": 2.0}, "recalibrate"))
    first, second = seen
    assert first["seed"] == second["seed"]
    assert torch.equal(first["images"], second["images"])
    same = {n for n in first["weights"] if torch.equal(first["weights"][n], second["weights"][n])}
    assert same == {"head.weight", "head.bias"}
    for call, seed in ((first, 0), (second, 1)):
        assert all(torch.equal(call["weights"][n], t) for n, t in weights(seed).items() if not n.startswith("head."))


def test_another_fine_tune_gets_another_head_subset_and_order(target, seen):
    tune(target, weights(0), seed=7)
    tune(target, weights(0), seed=8)
    first, second = seen
    assert first["seed"] != second["seed"]
    assert not torch.equal(first["weights"]["head.weight"], second["weights"]["head.weight"])
    assert not torch.equal(first["images"], second["images"])


def test_a_share_changes_the_order_and_neither_head_nor_permutation(target, seen):
    tune(target, weights(0), share=1.0)
    tune(target, weights(0), share=0.5)
    whole, half = seen
    assert whole["seed"] != half["seed"]
    assert torch.equal(whole["images"][:32], half["images"])
    assert torch.equal(whole["weights"]["head.weight"], half["weights"]["head.weight"])


def test_the_same_call_gives_the_same_result_and_the_weights_stay_as_they_were(target):
    state = weights(0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    torch.manual_seed(1)
    first = tune(target, state)
    torch.manual_seed(2)
    assert tune(target, state) == first
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_the_old_head_does_not_matter(target):
    state = weights(0)
    other = {**state, "head.weight": torch.randn(30, 64), "head.bias": torch.randn(30)}
    assert tune(target, other) == tune(target, state)


def test_the_test_set_is_read_only_if_asked(target):
    unreadable = replace(target, test=Split(torch.zeros(3, 5, 9, 9, dtype=torch.uint8), torch.zeros(3).long()))
    hidden, shown = tune(unreadable, weights(0), test=False), tune(target, weights(0), test=True)
    assert hidden.accuracy is shown.validation_accuracy is shown.validation_loss is None
    assert 0 <= hidden.validation_accuracy <= 1
    assert 0 <= shown.accuracy <= 1
    assert tune(replace(target, test=target.test.take(torch.arange(7))), weights(0), test=False) == hidden


def test_weights_of_another_network_are_refused(target):
    with pytest.raises(KnowError, match="do not fit plaincnn"):
        tune(target, weights(0), network="plaincnn")


@pytest.mark.parametrize("network", ["mlp", "normcnn"])
def test_stacked_fine_tunes_give_what_each_gives_alone(target, network):
    starts = [
        Start(weights(0, network)),
        Start(weights(1, network), {"conv2.weight": 2.0, "second.weight": 2.0}, "recalibrate"),
        Start(used(network), {}, "reset"),
    ]
    requests = [
        FineTune(start, 1.0, rate, seed, test)
        for start, rate, seed, test in zip(starts, GRID[2:5], (7, 8, 7), (True, False, True), strict=True)
    ]
    together = fine_tune_stacked(requests, network, target, SETTINGS)
    for request, found in zip(requests, together, strict=True):
        alone = fine_tune(request, network, target, SETTINGS)
        assert found.status == alone.status
        if request.test:
            assert found.validation_accuracy is found.validation_loss is None
            assert abs(found.accuracy - alone.accuracy) <= 3 / len(target.test)
        else:
            assert found.accuracy is None
            assert found.validation_loss == pytest.approx(alone.validation_loss, abs=0.01)
            assert abs(found.validation_accuracy - alone.validation_accuracy) <= 1 / SETTINGS.validation + 1e-6


def test_a_stacked_fine_tune_that_diverges_is_a_result_and_spoils_no_other(target):
    large = {name: 1e30 * tensor for name, tensor in weights(0).items()}
    requests = [FineTune(Start(state), 1.0, RATE, 7, False) for state in (weights(0), large)]
    fine, lost = fine_tune_stacked(requests, "mlp", target, SETTINGS)
    assert (fine.status, lost.status) == ("ok", "diverged")
    assert lost.validation_loss is None
    assert fine.validation_loss == pytest.approx(tune(target, weights(0), test=False).validation_loss, abs=1e-3)


def test_divergence_is_a_result(target):
    result = tune(target, {name: 1e30 * tensor for name, tensor in weights(0).items()}, test=False)
    assert result.status == "diverged"
    assert result.validation_loss is None
    json.dumps(vars(result), allow_nan=False)


# rates and normalisation


def test_rates_reach_the_training_loop_but_those_of_the_head(target, seen):
    start = Start(weights(0), {"first.weight": 2.0, "head.weight": 3.0})
    tune(target, start)
    tune(target, weights(0))
    assert seen[0]["rate_factors"] == {"first.weight": 2.0}
    assert not seen[1]["rate_factors"]
    assert tune(target, start) != tune(target, weights(0))


def test_carry_keeps_the_weights_own_normalisation(target, seen):
    state = used()
    tune(target, Start(state, normalisation="carry"), network="normcnn")
    assert all(torch.equal(t, state[n]) for n, t in seen[0]["weights"].items() if not n.startswith("head."))


@pytest.mark.parametrize("network", ["normcnn", "timm:resnet10t"])
def test_reset_gives_a_fresh_networks_normalisation_and_nothing_else(target, seen, network):
    """timm starts the last BatchNorm of a block at 0, not at 1."""
    fresh, kept = build(network, (1, 8, 8), 5, seed=3), normalisation(build(network, (1, 8, 8), 5))
    state = {name: t + 0.5 if t.is_floating_point() else t + 1 for name, t in fresh.state_dict().items()}
    tune(target, Start(state, normalisation="reset"), network=network)
    for name, tensor in seen[0]["weights"].items():
        if not name.startswith(head_name(fresh)):
            assert torch.equal(tensor, fresh.state_dict()[name] if name in kept else state[name])


def test_recalibrate_measures_the_statistics_on_the_target_images_and_nothing_else(target, seen):
    state = used()
    tune(target, Start(state, normalisation="recalibrate"), network="normcnn")
    model = build("normcnn", target.shape, 5)
    model.load_state_dict(state)
    recalibrate(model, target, target.train.take(target_split(target, SETTINGS, 1.0, 7)[0]))
    measured = model.state_dict()
    assert not torch.equal(measured["norm1.running_mean"], state["norm1.running_mean"])
    for name, tensor in seen[0]["weights"].items():
        if not name.startswith("head."):
            assert torch.equal(tensor, measured[name])


@pytest.mark.parametrize("policy", ["reset", "recalibrate"])
def test_without_normalisation_every_policy_is_naive(target, policy):
    assert tune(target, Start(weights(0), normalisation=policy)) == tune(target, weights(0))


# the source


def trained_on(digits, network: str) -> nn.Module:
    model = build(network, digits.shape, len(digits.classes), seed=1)
    finetune.train(model, digits, digits.train, Recipe(epochs=3, learning_rate=1e-2, batch_size=32), seed=1)
    return model


def test_source_accuracy_is_measured_with_carried_and_with_new_statistics(digits):
    model = trained_on(digits, "normcnn")
    found = source_accuracy(model.state_dict(), "normcnn", digits)
    assert found["source_accuracy"] == round(accuracy(model, digits, digits.test), 6)
    wrong = {n: t * 0 + 50 if n.endswith("running_mean") else t for n, t in model.state_dict().items()}
    spoilt = source_accuracy(wrong, "normcnn", digits)
    assert spoilt["source_accuracy"] < 0.5
    assert spoilt["source_accuracy_recalibrated"] == found["source_accuracy_recalibrated"] > 0.7


# fingerprints


def test_a_fingerprint_is_that_of_the_content():
    state = weights(0)
    same = Start({name: state[name].clone() for name in reversed(state)}, {})
    assert Start(state).fingerprint() == same.fingerprint()
    nudged = {name: tensor.clone() for name, tensor in state.items()}
    nudged["head.bias"][0] += 1e-7
    others = [
        Start(nudged),
        Start(state, {"first.weight": 1.5}),
        Start(state, {"first.weight": 1.25}),
        Start(state, {"second.weight": 1.5}),
        Start(state, normalisation="reset"),
        Start({name: tensor.double() for name, tensor in state.items()}),
        Start({f"x{name}": tensor for name, tensor in state.items()}),
        Start({name: tensor.reshape(1, *tensor.shape) for name, tensor in state.items()}),
    ]
    assert len({start.fingerprint() for start in (Start(state), *others)}) == 1 + len(others)
