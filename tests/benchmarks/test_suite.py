"""Suites: the shipped ones load; what is wrong is named with the nearest right thing; slugs are safe in paths."""

import itertools
import re

import pytest
import yaml
from planted_results import SUITES

from benchmarks.arms import arms_of, lines
from benchmarks.report.claims import CLAIMS
from benchmarks.settings import Origin, family
from benchmarks.suite import Suite, load_suite
from know.errors import KnowError


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch, repository):
    monkeypatch.chdir(repository)


@pytest.fixture
def changed(tmp_path, repository):
    """Function that writes the smoke suite with one key (a dotted path) set, or deleted by `...`, and loads it."""

    def change(place: str, value: object) -> Suite:
        suite = yaml.safe_load((repository / "benchmarks" / "suites" / "smoke.yaml").read_text())
        *parents, key = place.split(".")
        here = suite
        for parent in parents:
            here = here[int(parent) if parent.isdigit() else parent]
        if value is ...:
            del here[key]
        else:
            here[key] = value
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(suite))
        return load_suite(str(path))

    return change


@pytest.mark.parametrize("name", SUITES)
def test_shipped_suites_are_valid(name):
    suite = load_suite(name)
    assert suite.title
    assert suite.transfer.recipe.learning_rate in suite.transfer.grid
    assert {"naive", "scratch"} <= set(suite.arms.references)
    assert {"oracle", "oracle_steps"} & set(suite.arms.references)  # or there is no data gap
    assert suite.evidence == ("/" in name)
    assert suite.device == ("cuda" if name.startswith(("gpu/", "paper/")) else "cpu")
    if suite.evidence:
        assert {"known", "shrink", "linear"} <= {line.entry.name for line in lines(suite.arms)}
        assert suite.trajectories >= 5
        assert suite.pilots >= (1 if name.startswith("gpu/") else 2)  # a page says where it is one
        assert suite.forgetting.smallest >= 64


def test_the_core_suites_are_those_in_which_the_claims_are_judged():
    assert {name for name in SUITES if name.startswith("core/")} == set(CLAIMS.core)
    contrasts = itertools.chain(*CLAIMS.families)
    arms = {side.arm for contrast in contrasts for side in (contrast.better, contrast.worse)}
    for name in CLAIMS.core:
        suite = load_suite(name)
        assert suite.evidence
        for cell in suite.cells:
            assert (cell.track, cell.ratio, cell.share) == ("overflow", 0.5, 1.0)
            assert arms <= {arm.name for arm in arms_of(suite.arms, cell)}, name


ON_CPUS = [name for name in SUITES if name.startswith(("core/", "cells/", "ablations/"))]


@pytest.mark.parametrize("name", ON_CPUS)
def test_suites_of_the_comparison_have_trajectories_and_fine_tunes_enough(name):
    suite = load_suite(name)
    wide = name.startswith("core/") and suite.pairs[0].networks == ["plaincnn"]  # whose trajectories differ most
    assert (suite.trajectories, suite.pilots) == (
        16 if "pacs" in name or name == "cells/one-rate" else 26 if wide else 8,
        4,
    )
    noisy = name in ("core/imagenette", "core/gtsrb")
    assert suite.transfer.fine_tunes == (4 if noisy else 2)
    assert (suite.transfer.pilot_fine_tunes, suite.transfer.extensions) == (1, 2)
    for cell in suite.cells:
        names = {arm.name for arm in arms_of(suite.arms, cell)}
        assert set(suite.transfer.paper.arms if suite.transfer.paper else ()) <= names


def test_a_path_is_taken_as_one(tmp_path, changed):
    changed("title", "mine")
    assert load_suite(str(tmp_path / "changed.yaml")).title == "mine"


def test_a_base_gives_what_a_suite_does_not(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: smoke\ntitle: mine\ntrajectories: 7\ntransfer: {images: 64}\narms: {methods: {linear:}}\n")
    mine, smoke = load_suite(str(path)), load_suite("smoke")
    assert (mine.title, mine.trajectories, mine.transfer.images) == ("mine", 7, 64)
    assert mine.arms.methods == {"linear": None}  # entries of a section are replaced as they are
    changed = {"title": True, "trajectories": True, "transfer": {"images"}, "arms": {"methods"}}
    assert mine.model_dump(exclude=changed) == smoke.model_dump(exclude=changed)


@pytest.mark.parametrize("base", ["nowhere", "mine", "[smoke]"])
def test_a_wrong_base_is_refused(tmp_path, monkeypatch, base):
    monkeypatch.setattr("benchmarks.suite.SUITES", tmp_path)
    (tmp_path / "mine.yaml").write_text("base: yours\n")
    (tmp_path / "yours.yaml").write_text(f"base: {base}\n")
    with pytest.raises(KnowError, match=r"base must be|unknown suite"):
        load_suite("mine")


# names in paths


@pytest.mark.parametrize("name", SUITES)
def test_slugs_are_safe_in_paths_unique_and_lead_back(name):
    suite = load_suite(name)
    for items, find in ((suite.cells, suite.cell), (suite.origins, suite.origin)):
        slugs = [item.slug for item in items]
        assert len(set(slugs)) == len(slugs)
        assert all(re.fullmatch(r"[\w.+-]+", slug) and not slug.startswith(".") for slug in slugs)
        assert [find(slug) for slug in slugs] == items


def test_resized_images_are_of_their_family_and_have_names_of_their_own():
    assert family("imagenette_48@32") == family("imagenette_48@32:0-4") == family("imagenette_48") == "imagenette_48"
    assert family("cifar100@24:0-49") == "cifar"
    datasets = ("gtsrb_32", "gtsrb_32@3", "gtsrb_32:3", "gtsrb_32@3:3", "gtsrb_32@33")
    slugs = {Origin(dataset, "mlp").slug for dataset in datasets}
    assert len(slugs) == len(datasets)
    assert all(re.fullmatch(r"[\w.+-]+", slug) for slug in slugs)


def test_cells_are_the_product_of_what_is_varied(changed):
    suite = changed("transfer.shares", [1.0, 0.125, 0.25])
    kinds = {
        (pair.source, pair.target, n, track) for pair in suite.pairs for n in pair.networks for track in pair.tracks
    }
    assert len(suite.cells) == len(kinds) * 3
    assert len(suite.origins) == len({(source, network) for source, _, network, _ in kinds})
    assert {cell.origin for cell in suite.cells} == set(suite.origins)
    assert len({cell.slug for cell in suite.cells}) == len(suite.cells)


PAIR = {"source": "digits:0-4", "target": "digits:5-9", "networks": ["mlp"]}


def test_ratios_and_lengths_are_axes_that_names_mention_only_where_they_differ(changed):
    suite = changed("pairs", [{**PAIR, "ratios": [0.5, 0.7], "lengths": [3, 5]}])
    start = "overflow.digits_0-4.digits_5-9.mlp.100"
    assert {cell.slug for cell in suite.cells} == {start, f"{start}.s3", f"{start}.r0_7", f"{start}.r0_7.s3"}
    assert {cell.slug: (cell.ratio, cell.length) for cell in suite.cells}[f"{start}.r0_7.s3"] == (0.7, 3)
    assert [origin.slug for origin in suite.origins] == ["digits_0-4.mlp", "digits_0-4.mlp.r0_7"]
    assert [suite.cell(cell.slug) for cell in suite.cells] == suite.cells
    assert [suite.origin(origin.slug) for origin in suite.origins] == suite.origins


def test_ratio_and_length_are_those_of_the_forgetting_by_default(changed):
    (plain,) = changed("pairs", [PAIR]).cells
    assert (plain.ratio, plain.length, plain.slug) == (0.5, 5, "overflow.digits_0-4.digits_5-9.mlp.100")
    cells = changed("forgetting", {"ratio": 0.6, "length": 4, "step": {"epochs": 1, "learning_rate": 1e-3}}).cells
    assert {(cell.ratio, cell.length) for cell in cells} == {(0.6, 4)}
    assert all(cell.slug.endswith(".100.r0_6.s4") for cell in cells)


def test_an_origin_has_the_snapshots_that_its_longest_cell_takes_and_its_own_rate(changed):
    suite = changed("pairs", [{**PAIR, "lengths": [3]}, {**PAIR, "ratios": [0.5, 0.7], "lengths": [4, 6]}])
    found = {origin.ratio: suite.forgetting_of(origin) for origin in suite.origins}
    assert {rate: (f.ratio, f.length) for rate, f in found.items()} == {0.5: (0.5, 6), 0.7: (0.7, 6)}
    short = changed("pairs", [{**PAIR, "lengths": [3]}, {**PAIR, "ratios": [0.7], "lengths": [4]}])
    assert {o.ratio: short.forgetting_of(o).length for o in short.origins} == {0.5: 3, 0.7: 4}
    same = {"ratio", "length"}
    assert found[0.7].model_dump(exclude=same) == suite.forgetting.model_dump(exclude=same)


def test_every_length_has_a_known_of_its_own(changed):
    suite = changed("pairs", [{**PAIR, "lengths": [6, 2]}, {**PAIR, "ratios": [0.7]}])
    assert suite.lengths == [2, 5, 6]


def test_tracks_are_those_of_the_origins_cells(changed):
    both = {**PAIR, "networks": ["mlp", "normcnn"], "tracks": ["retrodiction", "overflow"]}
    suite = changed("pairs", [both, {**PAIR, "networks": ["plaincnn"]}, {**PAIR, "ratios": [0.7]}])
    assert {origin.slug: suite.tracks(origin) for origin in suite.origins} == {
        "digits_0-4.mlp": ["overflow", "retrodiction"],
        "digits_0-4.mlp.r0_7": ["overflow"],
        "digits_0-4.normcnn": ["overflow", "retrodiction"],
        "digits_0-4.plaincnn": ["overflow"],
    }


def test_arms_may_name_their_method(changed):
    entries = {"half": {"method": "linear", "options": {"step": 0.5}, "depths": [2]}, "known": None}
    found = changed("arms.methods", entries).arms.methods
    assert (found["half"].method, found["half"].options, found["half"].depths) == ("linear", {"step": 0.5}, [2])
    assert found["known"] is None
    with pytest.raises(KnowError, match=r"changed\.yaml: unknown method or arm 'lineal': did you mean 'linear'"):
        changed("arms.methods", {"known": {"method": "lineal"}})
    with pytest.raises(KnowError, match="unknown method or arm 'half'"):
        changed("arms.methods", {"half": {"options": {"step": 0.5}}})


def test_a_pair_given_twice_is_run_once(changed):
    pair = {"source": "digits", "target": "mnist", "networks": ["timm:resnet10t", "timm:resnet10t"]}
    suite = changed("pairs", [pair, pair])
    assert len(suite.cells) == 1
    assert suite.cells[0].slug == "overflow.digits.mnist.timm_resnet10t.100"


def test_trajectories_are_pilots_and_others():
    suite = load_suite("smoke")
    ids = suite.trajectory_ids
    assert len(ids) == len(set(ids)) == suite.pilots + suite.trajectories
    assert [i[0] for i in ids] == ["p"] * suite.pilots + ["t"] * suite.trajectories


def test_unknown_cells_and_origins_are_named():
    suite = load_suite("smoke")
    with pytest.raises(KnowError, match=f"cell 'overflow.*{re.escape(suite.cells[0].slug)}"):
        suite.cell(suite.cells[0].slug[:-1])
    with pytest.raises(KnowError, match="origin 'digits"):
        suite.origin(suite.origins[0].slug + "x")


# what is wrong is named


@pytest.mark.parametrize(
    ("place", "near"),
    [
        ("trajectory", "trajectories"),
        ("forgeting", "forgetting"),
        ("transfer.recipe.learning_rat", "learning_rate"),
        ("forgetting.step.epoch", "epochs"),
        ("metatraining.network", "networks"),
        ("pairs.0.track", "tracks"),
        ("pairs.0.ratio", "ratios"),
        ("pairs.0.length", "lengths"),
        ("arms.reference", "references"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(changed, place, near):
    with pytest.raises(KnowError, match=rf"changed\.yaml.*unknown key '{place}', did you mean '{near}'"):
        changed(place, 1)


def test_an_unknown_key_of_a_method_is_named_with_the_nearest(changed):
    with pytest.raises(KnowError, match=r"unknown key 'arms\.methods\.known\.depth', did you mean 'depths'") as caught:
        changed("arms.methods", {"known": {"depth": [1]}})
    assert "should be 'all'" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["title", "pairs", "trajectories", "transfer.grid", "forgetting.step", "pairs.0.target"]
)
def test_a_missing_key_is_named(changed, place):
    with pytest.raises(KnowError, match=rf"key '{place}' is missing"):
        changed(place, ...)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("trajectories", 1, "at least 2"),
        ("trajectories", "many", "trajectories"),
        ("pairs", [], "pairs"),
        ("forgetting.ratio", 1.0, "forgetting.ratio"),
        ("forgetting.length", 1, "forgetting.length"),
        ("pairs", [{**PAIR, "lengths": [7]}], "pairs.0.lengths.0"),
        ("transfer.grid", [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.3e-3], "factors of 2"),
        ("transfer.grid", [6.4e-3, 3.2e-3, 1.6e-3, 8e-4, 4e-4, 2e-4], "factors of 2"),
        ("transfer.grid", [3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3], "0.0016"),
        ("transfer.grid", [2e-4, 4e-4, 8e-4], "transfer.grid"),
        ("transfer.shares", [1.5], "transfer.shares"),
        ("transfer.recipe.schedule", "cosin", "cosine"),
        ("pretraining.steps", 100, "epochs"),
        ("pretraining.optimizer", "sgd", "same optimizer"),
        ("arms.references", ["oracle"], "naive"),
        ("arms.references", ["naive", "oracle_x4"], "oracle_x4 needs a forgetting.d0 of at most 0.25"),
        ("forgetting.d0", 0.6, "forgetting.d0"),
        ("metatraining.ratio", [0.9, 0.3], "0.9 down to 0.3"),
        ("metatraining.held_out", 0.001, "empty"),
    ],
)
def test_a_wrong_value_is_named(changed, place, value, said):
    with pytest.raises(KnowError, match=rf"changed\.yaml: .*{said}"):
        changed(place, value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: a\ntitle: b\n", "line 1.*'title' is given twice"),
        ("pairs:\n  - source: a\n    source: b\n", "line 2.*'source' is given twice"),
        ("title: [a\nb: c", "line"),
        ("title: a\n\tb: c", "line 2"),
        ("", ""),
        ("- a\n- b", ""),
        ("just words", ""),
        ("title: \x00", ""),
        ("? [a, b]\n: c", ""),
        ("title: !!python/object/apply:os.mkdir [exploded]", "python/object"),
    ],
)
def test_yaml_that_cannot_be_understood_is_named(tmp_path, monkeypatch, text, said):
    (tmp_path / "bad.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KnowError, match=rf"bad\.yaml.*{said}"):
        load_suite(str(tmp_path / "bad.yaml"))
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x80\x81 not text")
    with pytest.raises(KnowError, match=r"bad\.yaml"):
        load_suite(str(tmp_path / "bad.yaml"))


def test_an_unknown_suite_is_named_with_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(KnowError, match=r"suite 'smok'.*'smoke'"):
        load_suite("smok")
    with pytest.raises(KnowError, match=r"nowhere\.yaml does not exist"):
        load_suite("nowhere.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KnowError, match="top folder"):
        load_suite("smoke")
