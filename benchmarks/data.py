"""Datasets, each decoded once into uint8 tensors, and augmentation on the device.

A dataset is named by a short string, in which classes or domains can be chosen; suites and commands use it too:

    digits               all classes of the 8x8 scans that ship with scikit-learn (needs no download)
    digits:0-4           classes 0 to 4 only, relabelled 0..4
    cifar100:0-49+60     classes 0 to 49 and 60
    pacs:photo+cartoon   two domains of PACS
    imagenette_48@32     every image resized to 32x32, so that networks of another dataset's size take it
    imagenette_48@32:0-4 the same of classes 0 to 4

Files come from the folder in the environment variable KNOW_DATA (one .npz per dataset) or a download by torchvision.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from know.errors import KnowError, unknown
from know.seeds import stream

SEEN_IN_TEST = 14023  # a track of GTSRB whose sign some of the test images show too, from the same drive
PACS_TEST_SHARE = 0.2  # PACS has no official split; this share of every domain is held out, by a fixed seed


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, C, H, W) and labels int64 (N,), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | Sequence[int]) -> Split:
        """The rows of `index`, int64 (M,), in that order."""
        index = torch.as_tensor(index, device=self.labels.device)
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A classification dataset. `sha256` covers the decoded arrays of the whole dataset, before any restriction."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    sha256: str
    mean: Tensor  # (C,), of the training images with values in [0, 1]
    std: Tensor  # (C,)
    flip: bool  # whether a mirrored image still has the same class

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        moved = {field: getattr(self, field).to(device) for field in ("train", "test", "mean", "std")}
        return replace(self, **moved)


@dataclass(frozen=True)
class GroupedDataset(Dataset):
    """A dataset whose training images come in groups of near-copies, such as the frames of one film.

    groups: the number of each training image's group, int64 (N,), on the CPU. Validation images have to be of other
    groups than the images that are trained on (`benchmarks.finetune.target_split`).
    """

    groups: Tensor


@dataclass(frozen=True)
class _Source:
    """Where a dataset comes from, and the required hash of its decoded arrays (None: recorded, not checked)."""

    sha256: str | None
    flip: bool
    torchvision: str | None = None
    file: str | None = None


SOURCES = {
    "digits": _Source("1aa2b62f12589ca93311317a9dc7cf4b79fd525cd2f9612ec89257062044f4fa", flip=False),
    "mnist": _Source(
        "ee83530b944a724242360e8c64b9f684fb1bb5bcb7d42657fcb9132ca2ac51d0",
        flip=False,
        torchvision="MNIST",
        file="mnist.npz",
    ),
    "fashion_mnist": _Source(
        "a7ed2a64021f8c16993a9922ee3592853d8c82a423e66f41e9d78eecb0158311",
        flip=True,
        torchvision="FashionMNIST",
        file="fashion_mnist.npz",
    ),
    "notmnist_small": _Source(
        "bfd9ce788df6781d37cf780445150a947b0c6c8d2d7bb559af6b5ed991bc9e8f", flip=False, file="notmnist_small.npz"
    ),
    # torchvision checks the md5 of what it downloads; the decoded hash is recorded in every run.
    "cifar10": _Source(None, flip=True, torchvision="CIFAR10", file="cifar10.npz"),
    "cifar10_15k": _Source(
        "ee51f0e410190c81666d118837745d733f423f7e992249d5a113f09645420318", flip=True, file="cifar10_15k.npz"
    ),
    "cifar100": _Source(
        "ff6cba74b5fcf426e2e5b87205136fd593477c929eea6fe553afc7cd01904171",
        flip=True,
        torchvision="CIFAR100",
        file="cifar100.npz",
    ),
    # JPEG decoders differ by about one grey level, so these hashes cover the compressed bytes and the labels.
    "pacs": _Source("3602ceb173bca9ce232b0d0f123b6eb1c439684d62b8caf354990c22bb884788", flip=True, file="pacs_48.npz"),
    "imagenette_48": _Source(
        "d5be5dcec040a6a9ff89d602c6d175c0979c4dbd59b628d314b12b3c34301c28", flip=True, file="imagenette_48.npz"
    ),
    "gtsrb_32": _Source(  # mirrored, an arrow to the left is another sign
        "c06552c00c21b5943157b8c138fb7ee819b01c19a8de0d735eded75bd0a34cf2", flip=False, file="gtsrb_32.npz"
    ),
}


def load(spec: str, *, device: torch.device | str = "cpu", root: Path | str | None = None) -> Dataset:
    """Load the dataset named by `spec` (see the module's docstring) onto `device`.

    root: folder of the .npz files and of downloads; the default is the environment variable KNOW_DATA, else data/.
    Raises KnowError for an unknown name, class or domain, and for a missing, corrupt or altered file.
    """
    name, _, selection = spec.partition(":")
    name, resized, side = name.partition("@")
    if name not in SOURCES:
        raise unknown("dataset", name, SOURCES)
    if resized and not re.fullmatch(r"[1-9]\d{0,2}", side):
        raise KnowError(f"dataset {spec!r}: {side!r} is no side of images in pixels, such as 32")
    source = SOURCES[name]
    arrays = _read(name, source, Path(root or os.environ.get("KNOW_DATA") or "data"))
    sha256 = arrays.pop("sha256", None) or _hash(arrays)
    if source.sha256 and sha256 != source.sha256:
        raise KnowError(
            f"dataset {name}: the decoded data has sha256 {sha256[:16]}..., expected {source.sha256[:16]}...; "
            "the file is altered or of another version, fetch it again"
        )
    if resized:
        sha256 = hashlib.sha256(f"{sha256} resized to {side}".encode()).hexdigest()
        arrays |= {key: resize(images, int(side)) for key, images in arrays.items() if key.endswith("images")}
    if "domains" in arrays:
        arrays, selection = _split_domains(name, arrays, selection), ""
    train, test = (_to_split(arrays, part) for part in ("train", "test"))
    groups = torch.from_numpy(arrays["train_tracks"].astype(np.int64)) if "train_tracks" in arrays else None
    if groups is not None:
        kept = groups != SEEN_IN_TEST
        train, groups = train.take(kept), groups[kept]
    classes = tuple(str(c) for c in arrays["class_names"])
    if selection:
        chosen = _parse_classes(spec, selection, len(classes))
        groups = None if groups is None else groups[torch.isin(train.labels, torch.tensor(chosen))]
        train, test = (_restrict(split, chosen) for split in (train, test))
        classes = tuple(classes[c] for c in chosen)
    std, mean = torch.std_mean(train.images.double() / 255, dim=(0, 2, 3), correction=0)
    facts = (spec, train, test, classes, sha256, mean.float(), std.float().clamp_min(1e-3), source.flip)
    return (Dataset(*facts) if groups is None else GroupedDataset(*facts, groups)).to(device)


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """Resize uint8 images (N, H, W) or (N, H, W, C) to uint8 (N, side, side) or (N, side, side, C) by area.

    A new pixel is the mean of what it covers, rounded half up. The sums are of whole numbers below 2^53, which float64
    adds exactly in any order, and the division is one of integers: the bytes are the same on every machine, which no
    library promises for its filters.
    """
    down, across = (_overlaps(length, side) for length in images.shape[1:3])
    area = images.shape[1] * images.shape[2]
    resized = np.empty((len(images), side, side, *images.shape[3:]), np.uint8)
    for start in range(0, len(images), 1000):  # else the copies in float64 would take much memory
        part = images[start : start + 1000].astype(np.float64)
        sums = np.moveaxis(np.tensordot(down, part, (1, 1)), 0, 1)  # (n, side, W, ...)
        sums = np.moveaxis(np.tensordot(across, sums, (1, 2)), 0, 2)  # (n, side, side, ...)
        resized[start : start + 1000] = (2 * sums.astype(np.int64) + area) // (2 * area)
    return resized


def _overlaps(old: int, new: int) -> np.ndarray:
    """How much of each old pixel a new one covers along an axis, float64 (new, old): whole numbers of sum `old`."""
    starts, ends = (np.arange(new)[:, None] + k for k in (0, 1))
    begins, stops = (np.arange(old)[None] + k for k in (0, 1))
    covered = np.minimum(ends * old, stops * new) - np.maximum(starts * old, begins * new)
    return covered.clip(min=0).astype(np.float64)


def random_dataset(count: int, shape: tuple[int, int, int], classes: int) -> Dataset:
    """Random bytes and labels of a fixed seed, `count` images of `shape` (C, H, W), for measurements of time."""
    dice = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), generator=dice, dtype=torch.uint8)
    split = Split(images, torch.randint(classes, (count,), generator=dice))
    half = torch.full((shape[0],), 0.5)
    return Dataset("random", split, split, tuple(map(str, range(classes))), "", half, half, flip=True)


def normalise(images: Tensor, dataset: Dataset) -> Tensor:
    """Scale uint8 or float (B, C, H, W), 0 to 255, to float32; training data get mean 0 and deviation 1 per channel."""
    scale = 1 / (255 * dataset.std)
    shift = -dataset.mean / dataset.std
    return torch.addcmul(shift[:, None, None], images.float(), scale[:, None, None])


def draw_shift(count: int, shape: tuple[int, int, int], generator: torch.Generator, *, flip: bool) -> Tensor:
    """Draw shifts and mirroring for `augment`, for `count` images of `shape` (C, H, W): int64 (count, 3).

    Each row has the shift in rows and in columns, up to 1/8 of the side in both directions, and whether to mirror (1
    for half of the images if `flip`). They are drawn on the host, so that every device sees the same images.
    """
    drawn = []
    for side in shape[1:]:
        reach = max(1, side // 8)
        drawn.append(torch.randint(-reach, reach + 1, (count, 1), generator=generator))
    mirrored = torch.rand((count, 1), generator=generator) < 0.5 if flip else torch.zeros(count, 1)
    return torch.cat([*drawn, mirrored.long()], dim=1)


def draw_affine(count: int, shape: tuple[int, int, int], generator: torch.Generator, *, flip: bool) -> Tensor:
    """Draw affine maps as the authors' script does, for `count` images of `shape` (C, H, W): float32 (count, 2, 3).

    They rotate by up to 10 degrees, shift by up to 15 % of the side, zoom by 0.7 to 1.3 on each axis, and never mirror
    (`flip` is ignored). As `torch.nn.functional.affine_grid` requires, a map takes a place in the new image to one in
    the old image, both measured from the centre in units of half a side, horizontal first. A place is zoomed, then
    shifted, then rotated, as in Keras' generator, which the released script uses.
    """
    _, height, width = shape

    def uniform(low: float, high: float) -> Tensor:  # (count,)
        return low + (high - low) * torch.rand(count, generator=generator)

    angle = torch.deg2rad(uniform(-10, 10))
    down, right = uniform(-0.15, 0.15) * height, uniform(-0.15, 0.15) * width  # pixels
    zoom_y, zoom_x = uniform(0.7, 1.3), uniform(0.7, 1.3)
    cos, sin = angle.cos(), angle.sin()
    # in pixels from the centre: (y, x) -> rotation ((zoom_y y + down), (zoom_x x + right))
    horizontal = [cos * zoom_x, sin * zoom_y * height / width, (sin * down + cos * right) * 2 / width]
    vertical = [-sin * zoom_x * width / height, cos * zoom_y, (cos * down - sin * right) * 2 / height]
    return torch.stack([torch.stack(horizontal, dim=1), torch.stack(vertical, dim=1)], dim=1)


DRAWS: dict[str, Callable[..., Tensor]] = {"shift": draw_shift, "affine": draw_affine}
"""Kinds of augmentation (`benchmarks.settings.Recipe.augment`) and the functions that draw them."""


def augment(images: Tensor, drawn: Tensor) -> Tensor:
    """Change each image, uint8 (B, C, H, W), as drawn by a function of `DRAWS`; both tensors are on one device. Pixels
    beyond an edge repeat the edge.

    A shift gives uint8 in channels-last memory; an affine map interpolates and gives float32, still from 0 to 255.
    """
    if drawn.is_floating_point():
        grid = F.affine_grid(drawn, list(images.shape), align_corners=False)  # (B, H, W, 2)
        return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    batch, channels, height, width = images.shape
    device = images.device

    def positions(side: int, shift: Tensor) -> Tensor:  # (B, side) source coordinates
        return (torch.arange(side, device=device) + shift[:, None]).clamp_(0, side - 1)

    rows, columns = positions(height, drawn[:, 0]), positions(width, drawn[:, 1])
    columns = torch.where(drawn[:, 2:].bool(), columns.flip(1), columns)
    first = torch.arange(batch, device=device)[:, None, None] * (height * width)
    pixels = first + rows[:, :, None] * width + columns[:, None, :]  # (B, H, W)
    shifted = images.movedim(1, -1).reshape(-1, channels).index_select(0, pixels.flatten())
    return shifted.view(batch, height, width, channels).movedim(-1, 1)


def _read(name: str, source: _Source, root: Path) -> dict[str, np.ndarray]:
    """Read and decode {train,test}_{images,labels} and class_names (PACS: images, labels, domains and names)."""
    if name == "digits":
        return _digits()
    path = root / source.file
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as archive:
                return _decode({key: archive[key] for key in archive.files})
        except Exception as error:  # a damaged archive makes zipfile, numpy or pillow raise many kinds
            raise KnowError(f"{path} cannot be read ({error}); it is corrupt or truncated, fetch it again") from error
    if source.torchvision is None:
        raise KnowError(f"dataset {name} needs the file {path}; set KNOW_DATA to the folder that holds {source.file}")
    return _download(name, source.torchvision, root)


def _digits() -> dict[str, np.ndarray]:
    """Read 1,797 scans of 8x8 in 17 grey levels. The last 500, by other writers than the first, are the test set.

    The file inside scikit-learn is read without importing that package, which would cost every job two seconds; the
    content hash checks that it is still the same file.
    """
    package = importlib.util.find_spec("sklearn").submodule_search_locations[0]
    table = np.loadtxt(Path(package, "datasets", "data", "digits.csv.gz"), delimiter=",")  # (1797, 65), label last
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.uint8)
    return {
        "train_images": images[:-500],
        "train_labels": labels[:-500],
        "test_images": images[-500:],
        "test_labels": labels[-500:],
        "class_names": np.array([str(c) for c in range(10)]),
    }


def _decode(archive: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Decode compressed strips (lossless WebP) or single JPEGs to arrays; plain arrays do not change.

    JPEGs come with the hash of their compressed bytes and of what belongs to them, in `sha256`.
    """
    from PIL import Image

    def images(blob: np.ndarray, offsets: np.ndarray, side: int) -> np.ndarray:
        data = blob.tobytes()
        strips = (Image.open(io.BytesIO(data[a:b])).convert("RGB") for a, b in itertools.pairwise(offsets))
        return np.concatenate([np.asarray(strip).reshape(-1, side, side, 3) for strip in strips])

    if "images_jpeg" in archive:
        keys = ("labels", "domains", "class_names", "domain_names")
        decoded = {key: archive[key] for key in keys}
        decoded["images"] = images(archive["images_jpeg"], archive["offsets"], int(archive["image_size"]))
        decoded["sha256"] = _hash({key: archive[key] for key in ("images_jpeg", "offsets", "labels", "domains")})
        return decoded
    decoded = {key: archive[key] for key in ("class_names", "train_tracks") if key in archive}
    for part in ("train", "test"):
        decoded[f"{part}_labels"] = archive[f"{part}_labels"]
        if f"{part}_images" in archive:
            decoded[f"{part}_images"] = archive[f"{part}_images"]
        elif f"{part}_jpeg" in archive:
            side = int(archive["image_size"])
            decoded[f"{part}_images"] = images(archive[f"{part}_jpeg"], archive[f"{part}_offsets"], side)
        else:
            decoded[f"{part}_images"] = images(archive[f"{part}_webp"], archive[f"{part}_offsets"], 32)
    if "train_jpeg" in archive:
        compressed = [f"{part}_{kind}" for part in ("train", "test") for kind in ("jpeg", "offsets", "labels")]
        decoded["sha256"] = _hash({key: archive[key] for key in compressed})
    return decoded


def _download(name: str, cls: str, root: Path) -> dict[str, np.ndarray]:
    from torchvision import datasets

    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        try:
            fetched = getattr(datasets, cls)(root=str(root), train=part == "train", download=True)
        except Exception as error:  # torchvision raises many kinds for network, server, disk and md5
            raise KnowError(
                f"dataset {name}: download to {root} failed ({error}); try again, or set "
                f"KNOW_DATA to the folder that holds {SOURCES[name].file}"
            ) from error
        arrays[f"{part}_images"] = np.asarray(fetched.data, dtype=np.uint8)
        arrays[f"{part}_labels"] = np.asarray(fetched.targets, dtype=np.uint8)
        arrays["class_names"] = np.array(fetched.classes)
    return arrays


def _hash(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over the arrays in the order of their names, each with its shape; names of classes are left out."""
    state = hashlib.sha256()
    for key in sorted(arrays):
        if not key.endswith("_names"):
            state.update(f"{key}{arrays[key].shape}".encode())
            state.update(np.ascontiguousarray(arrays[key]).tobytes())
    return state.hexdigest()


def _to_split(arrays: dict[str, np.ndarray], part: str) -> Split:
    images = torch.from_numpy(np.ascontiguousarray(arrays[f"{part}_images"]))
    images = images[:, None] if images.ndim == 3 else images.movedim(-1, 1).contiguous()
    return Split(images, torch.from_numpy(arrays[f"{part}_labels"].astype(np.int64)))


def _split_domains(name: str, arrays: dict[str, np.ndarray], selection: str) -> dict[str, np.ndarray]:
    names = [str(d) for d in arrays["domain_names"]]
    chosen = selection.split("+") if selection else names
    for domain in chosen:
        if domain not in names:
            raise unknown(f"domain of {name}", domain, names)
    index: dict[str, list[np.ndarray]] = {"test": [], "train": []}
    for domain in (d for d in names if d in chosen):  # each has its own stream, independent of the others
        rows = np.flatnonzero(arrays["domains"] == names.index(domain))
        rows = np.random.default_rng(stream("split", name, domain)).permutation(rows)
        held_out = round(PACS_TEST_SHARE * len(rows))
        index["test"].append(rows[:held_out])
        index["train"].append(rows[held_out:])
    split = {"class_names": arrays["class_names"]}
    for part, parts in index.items():
        split[f"{part}_images"] = arrays["images"][np.concatenate(parts)]
        split[f"{part}_labels"] = arrays["labels"][np.concatenate(parts)]
    return split


def _parse_classes(spec: str, selection: str, count: int) -> list[int]:
    chosen: list[int] = []
    for item in selection.split("+"):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if not match:
            raise KnowError(f"dataset {spec!r}: {item!r} is no class number or range such as 0-4")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= count:
            raise KnowError(f"dataset {spec!r}: classes {item} are not within 0-{count - 1}")
        chosen += range(first, last + 1)
    if len(set(chosen)) != len(chosen):
        raise KnowError(f"dataset {spec!r}: a class is listed twice")
    return chosen


def _restrict(split: Split, classes: list[int]) -> Split:
    relabel = torch.full((int(max(split.labels.max(), max(classes))) + 1,), -1)
    relabel[torch.tensor(classes)] = torch.arange(len(classes))
    labels = relabel[split.labels]
    return Split(split.images[labels >= 0], labels[labels >= 0])
