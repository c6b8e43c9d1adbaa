"""Datasets: what a name selects, nested subsets, augmentation, normalisation, file formats, damaged files."""

import hashlib
import io
import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from benchmarks import data
from benchmarks.data import DRAWS, SOURCES, augment, load, normalise
from know.errors import KnowError
from know.subsets import nested_subsets

RNG = np.random.default_rng(0)
CLASSES = np.array(["a", "b", "c"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# what a name selects


def test_digits_are_embedded():
    digits = load("digits")
    assert digits.train.images.shape == (1297, 1, 8, 8)
    assert digits.test.images.shape == (500, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)
    assert digits.classes == tuple("0123456789")
    assert set(digits.train.labels.tolist()) == set(digits.test.labels.tolist()) == set(range(10))
    assert not digits.flip


def test_chosen_classes_are_relabelled_in_the_order_listed():
    everything, chosen = load("digits"), load("digits:7+0-2")
    assert chosen.classes == ("7", "0", "1", "2")
    assert chosen.sha256 == everything.sha256
    for part in ("train", "test"):
        all_of, some = getattr(everything, part), getattr(chosen, part)
        assert len(some) == int(torch.isin(all_of.labels, torch.tensor([7, 0, 1, 2])).sum())
        for new, old in enumerate((7, 0, 1, 2)):
            assert torch.equal(some.images[some.labels == new], all_of.images[all_of.labels == old])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digitz", "'digits'"),
        ("cifar-100", "'cifar100'"),
        ("digits:0-10", "0-10 .*0-9"),
        ("digits:12", "12 .*0-9"),
        ("digits:4-2", "4-2"),
        ("digits:a", "'a'"),
        ("digits:0-4+", "''"),
        ("digits:0-4+3", "twice"),
        ("digits:-1", "'-1'"),
        ("digits@", "''.*side"),
        ("digits@0", "'0'.*side"),
        ("digits@4x4:0-1", "'4x4'.*side"),
        ("digitz@4", "'digits'"),
    ],
)
def test_a_wrong_name_is_named_with_a_way_out(name, said):
    with pytest.raises(KnowError, match=said):
        load(name)


# another size


def by_hand(image: np.ndarray, side: int) -> np.ndarray:
    """Every pixel repeated as often as the new side has pixels; the mean of a block of these is the mean by area."""
    height, width = image.shape[:2]
    fine = image.repeat(side, 0).repeat(side, 1).astype(np.int64)
    sums = fine.reshape(side, height, side, width, *image.shape[2:]).sum((1, 3))
    return (2 * sums + height * width) // (2 * height * width)


@pytest.mark.parametrize(
    ("shape", "side"), [((48, 48, 3), 32), ((8, 8), 3), ((8, 8), 16), ((9, 6, 3), 4), ((5, 5), 5), ((7, 4), 1)]
)
def test_a_resized_pixel_is_the_rounded_mean_of_what_it_covers(shape, side):
    images = np.random.default_rng(1).integers(0, 256, (3, *shape), dtype=np.uint8)
    resized = data.resize(images, side)
    assert resized.dtype == np.uint8
    assert np.array_equal(resized, [by_hand(image, side) for image in images])


def test_whole_blocks_are_averaged_and_rounded_half_up_and_one_colour_stays():
    blocks = np.array([[[0, 1, 7, 7], [0, 1, 7, 7], [255, 255, 0, 0], [255, 254, 0, 3]]], dtype=np.uint8)
    assert data.resize(blocks, 2).tolist() == [[[1, 7], [255, 1]]]
    for level in (0, 77, 255):
        assert set(data.resize(np.full((2, 48, 48), level, np.uint8), 32).ravel()) == {level}


def test_many_images_are_resized_as_one_is():
    images = np.random.default_rng(2).integers(0, 256, (2001, 4, 4), dtype=np.uint8)
    assert np.array_equal(data.resize(images, 3)[[0, 999, 1000, 2000]], data.resize(images[[0, 999, 1000, 2000]], 3))


def test_a_side_in_the_name_resizes_all_images_and_changes_the_hash():
    plain, resized = load("digits"), load("digits@5")
    assert (resized.name, resized.shape, resized.classes) == ("digits@5", (1, 5, 5), plain.classes)
    for part in ("train", "test"):
        ours, theirs = getattr(resized, part), getattr(plain, part)
        assert torch.equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.images[:, 0].numpy(), data.resize(theirs.images[:, 0].numpy(), 5))
    assert len({plain.sha256, resized.sha256, load("digits@6").sha256}) == 3
    assert load("digits@5:3-4").sha256 == resized.sha256
    some = resized.train.take(torch.isin(resized.train.labels, torch.tensor([3, 4])).nonzero().flatten())
    assert torch.equal(load("digits@5:3-4").train.images, some.images)


# nested subsets


@pytest.mark.parametrize("n", [100, 656])
def test_subsets_are_prefixes_of_one_permutation(n):
    fractions = (0.05, 0.3, 0.31, 0.9, 1.0)
    subsets = nested_subsets(n, seed=5, fractions=fractions)
    assert [len(s) for s in subsets] == [round(f * n) for f in fractions]
    assert sorted(subsets[-1]) == list(range(n))
    for smaller, larger in pairwise(subsets):
        assert smaller == larger[: len(smaller)]


@pytest.mark.parametrize("n", [0, 1, 7, 10, 20])
def test_too_few_items_for_different_subsets_are_refused(n):
    with pytest.raises(KnowError, match=f"^{n} items are too few"):
        nested_subsets(n, fractions=(0.05, 0.3, 0.31, 0.9, 1.0))


def test_subsets_of_a_rate_are_those_of_its_powers():
    assert nested_subsets(100, 0.7, 3, 4) == nested_subsets(100, seed=4, fractions=[0.49, 0.7, 1])


def test_subsets_depend_on_the_seed_and_on_nothing_else():
    first = nested_subsets(100, fractions=[0.5, 1.0], seed=1)
    torch.manual_seed(9)
    again, reversed_order, other = (
        nested_subsets(100, fractions=f, seed=s) for f, s in (((0.5, 1), 1), ((1, 0.5), 1), ((0.5, 1), 2))
    )
    assert first[0] == again[0] == reversed_order[1]  # in the order of the fractions
    assert first[0] != other[0]


# augmentation


def changed(images, dice, *, flip=True, kind="shift"):
    return augment(images, DRAWS[kind](len(images), tuple(images.shape[1:]), dice, flip=flip))


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_augmentation_is_a_function_of_its_generator(digits, kind):
    images = digits.train.images[:50]
    ours, before = generator(), images.clone()
    first = changed(images, ours, kind=kind)
    assert torch.equal(first, changed(images, generator(), kind=kind))
    assert not torch.equal(first, changed(images, ours, kind=kind))
    assert torch.equal(images, before)
    assert first.shape == images.shape


def test_every_image_gets_a_shift_of_its_own_of_at_most_an_eighth():
    side, reach = 16, 2
    images = torch.zeros(500, 1, side, side, dtype=torch.uint8)
    images[:, :, 8, 8] = 255
    moved = changed(images, generator(), flip=False).nonzero()[:, 2:] - 8  # (500, 2)
    assert len(moved) == 500
    assert moved.abs().max() == reach
    assert len({tuple(m) for m in moved.tolist()}) == (2 * reach + 1) ** 2


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_channels_move_together_and_sides_may_differ(kind):
    images = torch.arange(8 * 24, dtype=torch.uint8).reshape(1, 1, 8, 24).repeat(20, 3, 1, 1)
    moved = changed(images, generator(), kind=kind)
    assert moved.shape == images.shape
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert torch.equal(moved[:, 0], moved[:, 2])


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_a_constant_image_stays_as_it_is(kind):
    images = torch.full((20, 3, 12, 12), 77, dtype=torch.uint8)
    torch.testing.assert_close(changed(images, generator(), kind=kind).float(), images.float())


def test_images_are_mirrored_only_if_asked_and_then_half_of_them():
    ramp = torch.arange(16, dtype=torch.uint8).expand(400, 1, 16, 16)
    left, right = (changed(ramp, generator(), flip=flip)[:, 0, 8] for flip in (False, True))
    assert bool((left.int().diff(dim=1) >= 0).all())
    falling = (right.int().diff(dim=1) <= 0).all(1)
    assert 160 < int(falling.sum()) < 240


def test_an_affine_map_is_a_rotation_a_shift_and_a_zoom_within_the_papers_bounds():
    """On square images the linear part is a rotation of at most 10 degrees after a zoom of 0.7 to 1.3 an axis."""
    maps = DRAWS["affine"](2000, (3, 32, 32), generator(), flip=True).double()
    linear, shift = maps[:, :, :2], maps[:, :, 2]
    zoom = linear.norm(dim=1)  # of each axis
    angle = torch.rad2deg(torch.atan2(linear[:, 0, 1], linear[:, 1, 1]))
    assert (linear[:, :, 0] * linear[:, :, 1]).sum(1).abs().max() < 1e-6  # columns stay at right angles
    for found, low, high in ((zoom, 0.7, 1.3), (angle, -10, 10), (shift.norm(dim=1), 0, 0.3 * 2**0.5)):
        assert low - 1e-6 < found.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < found.max() < high + 1e-6
    assert zoom.mean(0) == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("shape", [(9, 9), (8, 20), (20, 9)])
def test_an_affine_map_takes_each_place_where_numpy_would(shape):
    """scipy's own map of a place, (row, column) from the centre: rotation of (zoom and shift)."""
    height, width = shape
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    angle, down, right, zoom_y, zoom_x = np.deg2rad(7), 0.1 * height, -0.12 * width, 0.8, 1.25
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix, centre = turn @ np.diag([zoom_y, zoom_x]), (np.array(shape) - 1) / 2
    offset = turn @ np.array([down, right]) + centre - matrix @ centre
    expected = ndimage.affine_transform(image.astype(float), matrix, offset, order=1, mode="nearest")

    class Dice:  # draws that give exactly this map
        values = iter([(7 + 10) / 20, (0.1 + 0.15) / 0.3, (-0.12 + 0.15) / 0.3, (0.8 - 0.7) / 0.6, (1.25 - 0.7) / 0.6])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda count, generator: torch.full((count,), next(Dice.values)))
        drawn = DRAWS["affine"](1, (1, *shape), None, flip=False)
    found = augment(torch.from_numpy(image)[None, None], drawn)[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-2)


def test_no_change_drawn_is_no_change():
    images = torch.randint(256, (3, 3, 8, 12), generator=generator(), dtype=torch.uint8)
    still = torch.eye(3)[:2].expand(3, 2, 3)
    torch.testing.assert_close(augment(images, still), images.float(), atol=1e-3, rtol=0)
    assert torch.equal(augment(images, torch.zeros(3, 3, dtype=torch.int64)), images)


# normalisation


def save(path, **arrays):
    np.savez(path, class_names=CLASSES, **arrays)


def plain_arrays(train: int = 40, test: int = 10, shape: tuple[int, ...] = (6, 6, 3)) -> dict[str, np.ndarray]:
    return {
        f"{part}_{kind}": RNG.integers(0, high, (n, *size), dtype=np.uint8)
        for part, n in (("train", train), ("test", test))
        for kind, high, size in (("images", 256, shape), ("labels", 3, ()))
    }


def test_training_images_are_normalised_to_mean_0_and_deviation_1(tmp_path, digits):
    arrays = plain_arrays()
    arrays["train_images"][..., 1] //= 4
    save(tmp_path / "cifar10.npz", **arrays)
    for dataset in (digits, load("cifar10", root=tmp_path)):
        values = normalise(dataset.train.images, dataset).double()
        std, mean = torch.std_mean(values, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(std, torch.ones_like(std), atol=1e-5, rtol=0)


def test_a_channel_without_contrast_gives_finite_values(tmp_path):
    save(tmp_path / "cifar10.npz", **{**plain_arrays(), "train_images": np.full((40, 6, 6, 3), 9, np.uint8)})
    dataset = load("cifar10", root=tmp_path)
    assert bool(normalise(dataset.test.images, dataset).isfinite().all())


# file formats


def read(name: str, root):
    return data._read(name, SOURCES[name], root)


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3)])
def test_plain_arrays_are_read_as_they_are(tmp_path, shape):
    arrays = plain_arrays(shape=shape)
    save(tmp_path / "mnist.npz", **arrays)
    decoded = read("mnist", tmp_path)
    assert all(np.array_equal(decoded[key], arrays[key]) for key in arrays)
    split = data._to_split(decoded, "train")
    assert split.images.shape == (40, shape[2] if len(shape) == 3 else 1, *shape[:2])
    assert split.images[7, 0, 3, 5] == arrays["train_images"][(7, 3, 5, 0) if len(shape) == 3 else (7, 3, 5)]


def encode(pictures: list[np.ndarray], kind: str, **options) -> tuple[np.ndarray, np.ndarray]:
    blobs = []
    for picture in pictures:
        blobs.append(io.BytesIO())
        Image.fromarray(picture).save(blobs[-1], kind, **options)
    raw = [blob.getvalue() for blob in blobs]
    return np.frombuffer(b"".join(raw), np.uint8), np.cumsum([0, *map(len, raw)])


def test_webp_strips_are_read_without_loss(tmp_path):
    arrays = plain_arrays(train=7, test=4, shape=(32, 32, 3))
    packed = {key: value for key, value in arrays.items() if key.endswith("labels")}
    for part in ("train", "test"):  # strips of 4 images, the last one shorter
        images = arrays[f"{part}_images"]
        strips = [images[i : i + 4].reshape(-1, 32, 3) for i in range(0, len(images), 4)]
        packed[f"{part}_webp"], packed[f"{part}_offsets"] = encode(strips, "WEBP", lossless=True)
    save(tmp_path / "cifar100.npz", images_per_strip=4, **packed)
    decoded = read("cifar100", tmp_path)
    assert all(np.array_equal(decoded[key], arrays[key]) for key in arrays)


def test_jpeg_pictures_of_an_official_split_are_read_and_the_hash_is_that_of_their_files(tmp_path):
    pictures = [np.full((48, 48, 3), 5 * i, np.uint8) for i in range(12)]
    packed = {"image_size": 48}
    for part, own in (("train", pictures[:8]), ("test", pictures[8:])):
        packed[f"{part}_jpeg"], packed[f"{part}_offsets"] = encode(own, "JPEG", quality=90)
        packed[f"{part}_labels"] = np.arange(len(own), dtype=np.uint8) % 3
    save(tmp_path / "imagenette_48.npz", **packed)
    decoded = read("imagenette_48", tmp_path)
    levels = [decoded[f"{part}_images"].mean((1, 2, 3)) / 5 for part in ("train", "test")]
    assert [np.round(level).tolist() for level in levels] == [list(range(8)), list(range(8, 12))]
    packed["test_jpeg"] = np.append(packed["test_jpeg"], np.uint8(0))  # behind the end of the last file
    packed["test_offsets"][-1] += 1
    save(tmp_path / "imagenette_48.npz", **packed)
    changed = read("imagenette_48", tmp_path)
    assert np.array_equal(changed["test_images"], decoded["test_images"])
    assert changed["sha256"] != decoded["sha256"]


@pytest.fixture
def signs(tmp_path, monkeypatch):
    """6 tracks of 7 frames; the last one is that whose sign stands in the test set too."""
    arrays = plain_arrays(train=42, test=10)
    arrays["train_labels"] = np.repeat(np.arange(6, dtype=np.uint8) % 3, 7)
    tracks = np.array([0, 1000, 2000, 1, 1001, data.SEEN_IN_TEST])
    save(tmp_path / "gtsrb_32.npz", train_tracks=tracks.repeat(7), **arrays)
    monkeypatch.setitem(SOURCES, "gtsrb_32", replace(SOURCES["gtsrb_32"], sha256=None))
    return tmp_path


def test_frames_keep_the_number_of_their_track_and_those_that_the_test_set_shows_are_left_out(signs):
    everything, some = load("gtsrb_32", root=signs), load("gtsrb_32@4:2+0", root=signs)
    assert everything.groups.tolist() == [track for track in (0, 1000, 2000, 1, 1001) for _ in range(7)]
    assert len(everything.train) == 35
    assert some.groups.tolist() == [track for track in (0, 2000, 1) for _ in range(7)]
    assert some.train.labels.tolist() == [1] * 7 + [0] * 7 + [1] * 7
    assert torch.equal(some.to("cpu").groups, some.groups)


DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


@pytest.fixture
def pacs(tmp_path, monkeypatch):
    """100 flat pictures, 25 a domain, whose grey level is twice their number (JPEG keeps it to a unit)."""
    pictures = [np.full((48, 48, 3), 2 * i, np.uint8) for i in range(100)]
    blob, offsets = encode(pictures, "JPEG", quality=88)
    arrays = {"images_jpeg": blob, "offsets": offsets, "labels": np.arange(100, dtype=np.uint8) % 3, "image_size": 48}
    arrays |= {"domains": np.repeat(np.arange(4, dtype=np.uint8), 25), "domain_names": np.array(DOMAINS)}
    save(tmp_path / "pacs_48.npz", **arrays)
    monkeypatch.setitem(SOURCES, "pacs", replace(SOURCES["pacs"], sha256=None))
    return tmp_path


def numbers(split) -> list[int]:
    return [round(level / 2) for level in split.images.float().mean((1, 2, 3)).tolist()]


def test_jpeg_pictures_are_read_with_labels_and_domains(pacs):
    everything = load("pacs", root=pacs)
    assert everything.shape == (3, 48, 48)
    assert sorted(numbers(everything.train) + numbers(everything.test)) == list(range(100))
    assert all(
        label == number % 3 for number, label in zip(numbers(everything.test), everything.test.labels, strict=True)
    )
    some = load("pacs:photo+cartoon", root=pacs)
    assert sorted(numbers(some.train) + numbers(some.test)) == list(range(25, 75))
    with pytest.raises(KnowError, match=r"domain of pacs 'foto'.*'photo'"):
        load("pacs:foto", root=pacs)


def test_a_fifth_of_every_domain_is_held_out_whatever_other_domains_are_chosen(pacs):
    held_out = {name: set(numbers(load(f"pacs:{name}", root=pacs).test)) for name in DOMAINS}
    assert [len(numbers) for numbers in held_out.values()] == [5, 5, 5, 5]
    assert set(numbers(load("pacs:photo+cartoon", root=pacs).test)) == held_out["photo"] | held_out["cartoon"]
    assert set(numbers(load("pacs", root=pacs).test)) == set.union(*held_out.values())


# missing, altered and damaged files


def test_data_with_another_hash_is_refused(tmp_path):
    save(tmp_path / "mnist.npz", **plain_arrays(shape=(28, 28)))
    with pytest.raises(KnowError, match=r"mnist.*sha256.*altered"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: RNG.bytes(3000), lambda b: b""])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "notmnist_small.npz"
    save(path, **plain_arrays(shape=(28, 28)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(KnowError, match=r"notmnist_small\.npz.*corrupt or truncated"):
        load("notmnist_small", root=tmp_path)


def test_a_file_that_lacks_an_array_is_named(tmp_path):
    arrays = plain_arrays()
    del arrays["test_labels"]
    save(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(KnowError, match=r"cifar10\.npz.*test_labels"):
        load("cifar10", root=tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_inside_a_file_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("mnist.npz", train_images=np.array([Bomb()], dtype=object))
    with pytest.raises(KnowError, match=r"mnist\.npz"):
        load("mnist", root=tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_file_is_named_with_the_way_to_it(tmp_path):
    with pytest.raises(KnowError, match=r"notmnist_small\.npz.*KNOW_DATA"):
        load("notmnist_small", root=tmp_path)


# the real files

REAL = {
    "mnist": ("6510e85a72c3e9475c492d559d3770d2", "240610fa99e73bfa49df8e7fc24d3206"),
    "cifar100": ("111db26282d380128f3126515677de38", "f56c971f508f38ef6f45ff5a2db65ea6"),
}


def real(name: str):
    folder = os.environ.get("KNOW_DATA")
    if not folder or not os.path.isfile(os.path.join(folder, SOURCES[name].file)):
        pytest.skip(f"KNOW_DATA names no folder with {SOURCES[name].file}")
    return load(name)


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_data_decode_to_the_documented_bytes(name):
    dataset = real(name)
    for split, md5 in zip((dataset.train, dataset.test), REAL[name], strict=True):
        pictures = split.images.movedim(1, -1).contiguous().numpy()
        assert hashlib.md5(pictures.tobytes()).hexdigest() == md5


def test_real_imagenette_has_its_official_split_and_a_smaller_copy():
    real("imagenette_48")
    dataset = load("imagenette_48:0-4")
    assert dataset.shape == (3, 48, 48)
    smaller = load("imagenette_48@32:0-4")
    assert smaller.shape == (3, 32, 32)
    assert (len(smaller.train), len(smaller.test)) == (len(dataset.train), len(dataset.test)) == (4710, 1934)
    torch.testing.assert_close(smaller.mean, dataset.mean, atol=1e-3, rtol=0)
    assert (smaller.std < dataset.std).all()  # means of neighbours vary less
