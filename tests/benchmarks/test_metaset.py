"""The meta-set: what is drawn, how windows are cut, and that neither shards nor groups change a trajectory."""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted_results import meta_settings as settings

from benchmarks import metaset as making
from benchmarks.data import load
from benchmarks.metaset import _meta_trajectory, draw_run, histories, make_metaset, windows
from benchmarks.metatraining import fit_known
from benchmarks.report.pretrained import card
from benchmarks.store import Store
from know.checkpoints import load_facts, load_state
from know.errors import KnowError
from know.files import read_json
from know.known import Known
from know.roles import PREDICTED
from know.seeds import stream

# what is drawn


SIZES = {"digits": 1297, "digits:0-4": 649, "digits:5-9": 648, "mnist": 60_000, "notmnist_small": 8000}


def draw(count: int, ranges, sizes=SIZES) -> list[dict]:
    return [draw_run(run, ranges, sizes) for run in range(count)]


@pytest.mark.parametrize(
    ("data", "images", "smallest"),
    [(["digits:0-4"], 600, 16), (["digits"], 1000, 64), (["digits"], 100, 50), (["mnist", "notmnist_small"], 4000, 32)],
)
def test_draws_stay_within_their_ranges_and_keep_the_smallest_subset(data, images, smallest):
    ranges = settings(datasets=data, images=images, smallest=smallest, batch_size=32, step_updates=(20, 300))
    runs = draw(128, ranges)
    for run in runs:
        assert 0.3 <= run["ratio"] <= 0.9
        assert 1e-5 <= run["learning_rate"] <= 4e-3
        assert images <= run["images"] <= SIZES[run["dataset"]]
        assert run["smallest"] == round(run["images"] * run["ratio"] ** 6) >= smallest
        assert min(32, run["smallest"]) <= run["batch_size"] <= max(32, run["smallest"])
        assert run["pretraining_epochs"] in (1, 2, 3)
        assert run["forgetting_epochs"] in (1, 2, 3)
        batches = math.ceil(round(run["images"] * run["ratio"]) / run["batch_size"])
        assert run["updates"] in {run["forgetting_epochs"] * (batches + k) for k in (-1, 0)}
        fewest, most = (  # a batch size that the paper allows, and the one nearest to what was asked
            run["forgetting_epochs"] * run["images"] * run["ratio"] / size for size in (run["smallest"], 32)
        )
        if fewest < 20 < 300 < most:
            assert 18 <= run["updates"] <= 320
        assert (run["pretraining_rate"] == run["learning_rate"]) == (run["pretraining_schedule"] == "constant")
    assert len({run["seed"] for run in runs}) == 128


def test_the_draws_of_a_network_fill_their_ranges_together():
    """In every quarter of r there are few and many updates, theta_0 at rest and not, and each number of epochs."""
    wide = {"images": 4000, "smallest": 32, "batch_size": 32, "datasets": ["mnist", "notmnist_small"]}
    ranges = settings(**wide, networks=["mlp", "plaincnn"], pretraining_epochs=(1, 10))
    every = draw(128, ranges)
    for network in ranges.networks:
        runs = [run for run in every if run["network"] == network]
        low, high = min(run["ratio"] for run in runs), max(run["ratio"] for run in runs)
        assert low < 0.31
        assert high > 0.89
        for k in range(4):
            quarter = [run for run in runs if 0.3 + 0.15 * k <= run["ratio"] < 0.45 + 0.15 * k]
            assert 12 <= len(quarter) <= 20
            assert {run["pretraining_schedule"] for run in quarter} == {"constant", "cosine"}
            assert {run["forgetting_epochs"] for run in quarter} == {1, 2, 3}
            updates = sorted(run["updates"] for run in quarter)
            assert updates[-1] > 250
            assert updates[0] < (50 if k > 1 else 500)  # a small r allows only small batches (the paper's bound)
    large = [run for run in every if run["ratio"] < 0.39]
    assert {run["dataset"] for run in large} == {"mnist"}  # only it has so many images
    assert all(run["images"] * run["pretraining_epochs"] <= 200_000 or run["pretraining_epochs"] == 1 for run in every)


def test_a_run_is_a_function_of_its_number_and_the_ranges_alone():
    other = settings(trajectories=400, shards=7, updates=9, held_out=0.4, windows=5)
    assert draw(20, settings()) == draw(20, other)


def test_ranges_that_no_run_can_satisfy_are_refused():
    with pytest.raises(KnowError, match=r"649 images keep 600 .* above 0\.99, but ratio ends at 0\.9"):
        draw(1, settings(images=100, smallest=600))


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
            make_metaset(
                shard, settings(shards=shards), store=Store(out / f"store-{shards}"), out=out / f"{shards}-{shard}"
            )
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


def test_another_meta_set_trains_only_what_is_not_in_the_store(metaset, monkeypatch, tmp_path):
    """Four more trajectories, and other settings of the meta-training: the first four are taken as they are."""
    trained = []
    real = making._make_group
    monkeypatch.setattr(making, "_make_group", lambda group, *rest: (trained.extend(group), real(group, *rest)))
    more = settings(trajectories=8, shards=1, updates=7, bias_penalty=0.0)
    store = tmp_path / "store"
    shutil.copytree(metaset / "store-1", store)
    make_metaset(0, more, store=Store(store), out=tmp_path / "more")
    names = [f"{run:05d}.safetensors" for run in range(8)]
    assert trained == names[4:]
    assert sorted(read_json(tmp_path / "more" / "manifest.json")["files"]) == names
    for name in names[:4]:
        assert (tmp_path / "more" / name).read_bytes() == (metaset / "1-0" / name).read_bytes()


def test_a_trajectory_of_the_metaset_keeps_histories_and_what_was_drawn(metaset):
    files = sorted((metaset / "1-0").glob("*.safetensors"))
    for run, path in enumerate(files):
        facts, found = load_facts(path), load_state(path)
        assert facts == {**draw_run(run, settings(), SIZES), "run": run, "status": "ok"}
        assert {role: tuple(rows.shape) for role, rows in found.items()} == dict.fromkeys(
            PREDICTED, (50, 7)
        )  # 100 windows
        assert all(float(rows.diff(dim=1).abs().max()) > 0 for rows in found.values())
    assert len({path.read_bytes() for path in files}) == 4


@pytest.mark.parametrize("together", [2, 3])
def test_runs_that_are_trained_at_once_share_what_must_be_shared_and_nothing_else(together):
    ranges = settings(together=together, datasets=["digits:0-4", "digits"], networks=["mlp", "plaincnn"])
    runs = draw(12 * together, ranges)
    own = {"learning_rate", "pretraining_rate", "seed"}
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
        make_metaset(shard, plan, store=Store(tmp_path / "store"), out=tmp_path / str(shard))
    files = sorted(path for shard in range(2) for path in (tmp_path / str(shard)).glob("*.safetensors"))
    assert sorted(path.name for path in files) == [f"{run:05d}.safetensors" for run in range(5)]
    for path in files:
        facts, found = load_facts(path), load_state(path)
        assert facts == {**draw_run(facts["run"], plan, SIZES), "run": facts["run"], "status": "ok"}
        (states,) = _meta_trajectory([draw_run(facts["run"], plan, SIZES)], digits, plan.carry_optimizer)
        alone = histories(states, plan.windows // 2, stream(facts["seed"], "windows"))
        for role, rows in found.items():
            assert (rows - alone[role]).abs().quantile(0.9) < 1e-4
            assert rows.diff(dim=1).abs().quantile(0.9) > 1e-4  # pixels that are always black teach nothing


def test_a_run_that_diverges_beside_others_is_left_out_alone(monkeypatch, tmp_path):
    real = making.draw_run

    def too_fast(run, ranges, sizes):
        return {**real(run, ranges, sizes), **({"learning_rate": 1e30} if run == 2 else {})}

    monkeypatch.setattr(making, "draw_run", too_fast)
    make_metaset(0, settings(together=4, shards=1), store=Store(tmp_path / "store"), out=tmp_path / "0")
    said = {path.name: load_facts(path)["status"] for path in sorted((tmp_path / "0").glob("*.safetensors"))}
    assert list(said.values()) == ["ok", "ok", "diverged", "ok"]


def test_networks_that_ship_may_be_judged_beside(tmp_path):
    made = settings(beside="general", datasets=["digits:0-4"], trajectories=4, shards=1)
    make_metaset(0, made, store=Store(tmp_path / "store"), out=tmp_path / "0")
    fit_known([tmp_path / "0" / "manifest.json"], made, out=tmp_path / "known")
    errors = pd.read_csv(tmp_path / "known" / "held_out.csv")
    runs = {model: set(own.run) for model, own in errors.groupby("model")}
    assert runs["shipped"] == runs["known"]
    assert "the KNOWN that ships (general), to no change |" in card(tmp_path / "known")
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
        make_metaset(0, settings(images=700), store=Store(tmp_path / "store"), out=tmp_path / "out")


def test_the_card_says_what_known_was_trained_on(metaset, tmp_path):
    known = fit_known(shards_of(metaset, 1), settings(), out=tmp_path / "known")
    assert (known.facts["data"], known.facts["networks"]) == (["digits:0-4"], ["plaincnn"])
    assert known.facts["trajectories"] == {"training": 2, "selection": 1, "held_out": 1, "diverged": 0}
    assert Known.load(tmp_path / "known" / "known.safetensors").facts == known.facts
    assert read_json(shards_of(metaset, 1)[0])["data"].keys() == {"digits:0-4"}
