"""What is known of the networks that ship: variants of the meta-training, skill where the truth exists, the page."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted_results import meta_settings, records, write_results

from benchmarks.metaset import make_metaset
from benchmarks.metatraining import fit_known, fit_variant
from benchmarks.report import pretrained, render
from benchmarks.report.folders import load_all
from benchmarks.settings import Arms, Group, Shipped, Skill, variants
from benchmarks.skill import differences, measure, windows_table
from benchmarks.store import Store
from know.errors import KnowError
from know.files import read_json
from know.inspection import movement
from know.roles import PREDICTED

TINY = Path(__file__).parents[1] / "suites" / "tiny.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Shipped, Path]:
    """Tiny networks that could ship, with all that is known of them: the settings, and the folder."""
    folder = tmp_path_factory.mktemp("shipped")
    work, out = folder / "work", folder / "pretrained"
    short = {"pretraining_epochs": (1, 1), "forgetting_epochs": (1, 1), "step_updates": (4, 12)}
    meta = meta_settings(networks=["plaincnn", "normcnn"], datasets=["digits:5-9"], trajectories=16, shards=1, **short)
    arms = Arms(
        references=["naive", "tail_average", "oracle"],
        methods={name: {"depths": [1]} for name in ("known", "linear", "meta_linear")},
    )
    asked = {"suite": str(TINY), "group": "general", "source": "digits:0-4", "networks": ["mlp"]}
    skill = Skill(**asked, trajectories=2, arms=arms)
    settings = Shipped.model_construct(metatraining=meta, groups={"general": Group()}, skill=skill)
    shards = [work / "metaset" / "0" / "manifest.json"]
    make_metaset(0, meta, store=Store(work / "store"), out=shards[0].parent)
    fit_known(shards, meta, out=out / "general" / "5")
    for name in variants(meta):
        fit_variant(name, shards, meta, out=work / "variants" / f"{name}.csv")
    measure("mlp", skill, known=out / "general" / "5", store=Store(work / "store"), work=work)
    pretrained.publish(settings, work, windows_table(shards, skill, work), out)
    return settings, out


def test_naive_stands_at_one_and_the_truth_at_zero(made):
    _, out = made
    table = pd.read_csv(out / "skill.csv").set_index(["arm", "role"])
    assert set(table.index) == set(
        itertools.product(
            ["naive", "oracle", "tail_average", "known_x2", "linear_x2", "meta_linear_x2"], ["fc", "bias", "all"]
        )
    )
    assert table.loc["naive", "weight_error"].tolist() == [1.0] * 6
    assert table.loc["naive", "step"].tolist() == [0.0] * 6
    assert table.loc["oracle", "weight_error"].tolist() == [0.0] * 6
    whole = table.xs("all", level="role")
    assert whole["source_accuracy"].notna().all()
    assert table.xs("fc", level="role")["source_accuracy"].isna().all()
    assert whole.loc["known_x2", "step"].gt(0).all()


def test_a_network_that_is_left_out_is_tested_on_and_in_nothing_else(made):
    _, out = made
    table = pd.read_csv(out / "variants.csv")
    for variant, own in table.groupby("variant"):
        parts = {part: set(rows["network"]) for part, rows in own.groupby("part")}
        if variant.startswith("without-"):
            left_out = variant.removeprefix("without-")
            assert parts["held_out"] == {left_out}
            assert left_out not in parts["selection"]
            assert own.loc[own["part"] == "held_out", "run"].nunique() == 8
        else:
            assert parts["held_out"] == parts["selection"] == {"plaincnn", "normcnn"}


def test_variants_are_judged_on_the_same_trajectories_and_differ(made):
    _, out = made
    table = pd.read_csv(out / "variants.csv")
    table = table[~table["variant"].str.startswith("without-")]
    runs = table.groupby(["variant", "part"])["run"].unique().map(set).unstack()
    assert runs["selection"].map(frozenset).nunique() == runs["held_out"].map(frozenset).nunique() == 1
    assert not runs.iloc[0]["selection"] & runs.iloc[0]["held_out"]
    losses = table.groupby("variant")["loss"].unique().map(tuple)
    assert losses.nunique() == len(losses)


def test_the_page_and_the_cards_are_made_from_the_tables_and_give_the_rule_s_choice(made):
    _, out = made
    page = (out / "README.md").read_text(encoding="utf-8")
    selection = pd.read_csv(out / "variants.csv").query("part == 'selection'")
    scores = {name: pretrained.score(selection, name) for name in pretrained.CHOICES}
    assert f"`{min(scores, key=scores.get)}`" in page
    errors = pd.read_csv(out / "general" / "5" / "held_out.csv")
    said = pretrained.verdict(errors, pd.read_csv(out / "skill.csv"))
    assert ("has skill at" in page) == said["skill"]
    card = (out / "general" / "5" / "README.md").read_text(encoding="utf-8")
    drawn = read_json(out / "general" / "5" / "facts.json")["drawn"]
    assert f"r from {drawn['ratio'][0]:.2f} to {drawn['ratio'][1]:.2f}" in card
    assert drawn["ratio"][0] > (16 / 648) ** (1 / 6)  # all that the data allow, not what the settings ask for


def test_the_front_page_of_the_results_says_the_same_of_their_skill(made, tmp_path, monkeypatch):
    settings, out = made
    monkeypatch.setattr(render, "PRETRAINED", out)
    monkeypatch.setattr(render, "load_shipped", lambda: settings)
    write_results(tmp_path / "one", records())
    front = render.front_pages(load_all(tmp_path))["README.md"]
    own = (out / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"KNOWN has (?:no )?skill at r = 0\.5", own)
    assert said in front


def test_an_unknown_variant_is_named(made, tmp_path):
    settings, _ = made
    with pytest.raises(KnowError, match=r"variant of the meta-training 'absolute'.*absolute-0"):
        fit_variant("absolute", [], settings.metatraining, out=tmp_path / "x.csv")


# the rule on skill


def held_out(loss: dict[str, float], spread: float = 0.01) -> pd.DataFrame:
    """Errors of known by role relative to no change, on ten trajectories inside the bucket, and bad ones outside."""
    rows = []
    for (role, value), k in itertools.product(loss.items(), range(10)):
        relative = value * (1 + spread * (-1) ** k)
        rows += [{"model": "known", "role": role, "ratio": 0.5, "loss": relative, "no_change_loss": 1.0}]
        rows += [{"model": "known", "role": role, "ratio": 0.6, "loss": 9.0, "no_change_loss": 1.0}]
        rows += [{"model": "scaled", "role": role, "ratio": 0.5, "loss": 9.0, "no_change_loss": 1.0}]
    return pd.DataFrame(rows)


def weight_errors(known: float, best: float, spread: float = 0.01) -> pd.DataFrame:
    rows = []
    for network, k in itertools.product("ab", range(6)):
        for arm, value in (
            ("known_x2", known),
            ("tail_average", best),
            ("naive", 1.0),
            ("linear_x2", 1.2),
            ("oracle", 0.0),
        ):
            moved = value + spread * (-1) ** k * (arm == "known_x2")
            where = {
                "arm": arm,
                "network": network,
                "trajectory": f"t{k}",
                "source_accuracy_recalibrated": 1 - moved / 2,
            }
            rows += [{**where, "role": "all", "weight_error": moved}, {**where, "role": "fc", "weight_error": 0.0}]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("errors", "weights", "on_windows", "on_weights"),
    [
        (held_out({"conv": 0.9, "fc": 0.96}), weight_errors(0.95, 0.9), True, False),
        (held_out({"conv": 0.9, "fc": 0.98}), weight_errors(0.95, 0.9), False, False),  # not below 0.97
        (held_out({"conv": 0.9, "fc": 0.96}, spread=0.3), weight_errors(0.95, 0.9), False, False),  # too uncertain
        (held_out({"conv": 1.1, "fc": 1.1}), weight_errors(0.85, 0.9), False, True),
        (held_out({"conv": 1.1, "fc": 1.1}), weight_errors(0.89, 0.9, spread=0.05), False, False),
    ],
)
def test_the_rule_on_skill(errors, weights, on_windows, on_weights):
    said = pretrained.verdict(errors, weights)
    assert said["best"] == "tail_average"
    assert (said["on_windows"], said["on_weights"]) == (on_windows, on_weights)
    assert said["skill"] == (on_windows or on_weights)
    # accuracy falls by half a point for every hundredth of the weight error
    assert said["accuracy"]["tail_average"] == "+5.00 [+5.00, +5.00]"
    assert said["accuracy"]["oracle"] == "+50.00 [+50.00, +50.00]"


def test_a_relative_loss_counts_each_trajectory_once_and_halving_as_much_as_doubling():
    table = pd.DataFrame({"loss": [1.0, 4.0, 0.5, 3.0], "no_change_loss": [2.0, 2.0, 0.5, 0.0]})
    interval = pretrained.relative_loss(table)
    assert interval.mean == pytest.approx(1.0)
    assert interval.n == 3  # nothing moved in the fourth
    assert interval.low * interval.high == pytest.approx(1.0)


# how windows move


def test_windows_of_single_weights_move_as_their_trajectory_does(write_trajectory):
    dice = torch.Generator().manual_seed(0)
    states = [{"a.weight": torch.randn(30, 4, generator=dice)} for _ in range(5)]
    trajectory = write_trajectory(states)
    expected = pd.DataFrame([row for row in movement(trajectory) if row["role"] == "fc"])
    found = differences(torch.stack([state["a.weight"].flatten() for state in states], dim=1))
    np.testing.assert_allclose(found["size"], expected["size"].astype(float), rtol=1e-6)
    np.testing.assert_allclose(found["cosine"][1:], expected["cosine"][1:].astype(float), rtol=1e-6)


def test_the_table_of_windows_has_both_sides_of_every_role(made):
    _, out = made
    table = pd.read_csv(out / "windows.csv").set_index(["quantity", "role", "of"])
    assert set(table.index.get_level_values("role")) == {*PREDICTED, "-"}
    for quantity, role in (("size", "fc"), ("cosine", "fc"), ("updates", "-")):
        assert (role, "digits:0-4, mlp") in table.loc[quantity].index
        assert (role, "meta-set") in table.loc[quantity].index
    numbers = table.drop(columns="n").astype(float)
    assert (numbers.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
