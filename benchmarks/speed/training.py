"""How fast `benchmarks.training` trains, compared with a plain DataLoader loop and with the limits of the device.

    python -m benchmarks.speed.training                 # the CPU, on one thread
    python -m benchmarks.speed.training --device cuda

This script writes training.json, which keeps what was measured on the other device, and README.md into its folder.
Images are random bytes of a fixed seed; only the time is measured. All contestants of one network take turns within one
run, so that slow minutes of the machine affect all equally, and the median of the turns counts. The first turn, which
compiles, fills caches and starts the loader's processes, does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from benchmarks.data import Dataset, random_dataset
from benchmarks.networks import build
from benchmarks.settings import Recipe
from benchmarks.speed import _table
from benchmarks.speed.prediction import machine, of, timed, used
from benchmarks.stacked import Stacked
from benchmarks.training import _Single, autocast, train
from know.files import read_json, write_json

HERE, WORK = Path(__file__).parent, Path(__file__).parents[2] / "work" / "speed"
SHAPE, CLASSES, RATE = (3, 32, 32), 10, 1e-3


@dataclass(frozen=True)
class Case:
    """One network and its images in a turn. images: a multiple of the batch; each is used once."""

    network: str
    augment: str
    batch: int
    images: int


@dataclass(frozen=True)
class Plan:
    """What is measured on a device. stacked: numbers of networks trained at once, each on `Plan.each` images."""

    cases: tuple[Case, ...]
    stacked: tuple[int, ...]
    each: int
    repeats: int
    side: int
    """Rows and columns of the matrices in the large product."""
    copied: int
    """Number of bytes in the large copy."""


PLANS = {
    "cpu": Plan(
        (
            Case("plaincnn", "shift", 128, 4096),
            Case("resnet8", "shift", 128, 2048),
            Case("resnet18_cifar", "affine", 16, 32),
        ),
        stacked=(1, 8),
        each=512,
        repeats=5,
        side=2048,
        copied=1 << 28,
    ),
    "cuda": Plan(  # one size of batch, since every other is compiled anew, which takes longer than the rest
        (
            Case("resnet8", "shift", 128, 16384),
            Case("resnet18_cifar", "affine", 128, 8192),
        ),
        stacked=(1, 8, 64, 256),
        each=4096,
        repeats=3,
        side=8192,
        copied=1 << 30,
    ),
}
QUICK = Plan(
    (Case("plaincnn", "shift", 16, 32), Case("resnet8", "affine", 16, 32)),
    stacked=(1, 2),
    each=32,
    repeats=1,
    side=256,
    copied=1 << 20,
)


class Pictures(torch.utils.data.Dataset):
    """A dataset for a DataLoader, like torchvision's CIFAR-10: one image at a time, turned into a PIL image."""

    def __init__(self, dataset: Dataset, count: int, augment: str):
        self.images = dataset.train.images[:count].movedim(1, -1).contiguous().cpu().numpy()  # (N, H, W, C)
        self.labels = dataset.train.labels[:count].tolist()
        bilinear = transforms.InterpolationMode.BILINEAR
        changes = {
            "shift": [transforms.RandomCrop(SHAPE[1:], padding=SHAPE[1] // 8), transforms.RandomHorizontalFlip()],
            "affine": [transforms.RandomAffine(10, (0.15, 0.15), (0.7, 1.3), interpolation=bilinear)],
        }
        scale = transforms.Normalize(dataset.mean.tolist(), dataset.std.tolist())
        to_float = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float), scale]
        self.transform = transforms.Compose([*changes[augment], *to_float])
        self.to_pil = transforms.functional.to_pil_image

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.to_pil(self.images[index])), self.labels[index]


def workers(device: str) -> int:
    """Number of loading processes: 0 where one CPU thread trains; else at most 16, as in torchvision's scripts."""
    return 0 if device == "cpu" else min(16, os.cpu_count())


def loader(case: Case, dataset: Dataset, device: str) -> DataLoader:
    processes = workers(device)
    return DataLoader(
        Pictures(dataset, case.images, case.augment),
        batch_size=case.batch,
        shuffle=True,
        num_workers=processes,
        persistent_workers=processes > 0,
        pin_memory=device != "cpu",
    )


class Loop:
    """The comparison: one epoch as in usual training scripts, with our network and the same kind of optimiser."""

    def __init__(self, case: Case, batches: DataLoader, device: str, precision: str = "float32"):
        self.device, self.recipe = torch.device(device), recipe(case, precision=precision)
        self.model, self.batches = network(case).to(device), batches
        self.criterion = nn.CrossEntropyLoss()
        self.loss = self.correct = 0.0

    def __call__(self) -> None:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)
        self.model.train()
        for images, labels in self.batches:
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            with autocast(self.recipe, self.device):
                scores = self.model(images)
                loss = self.criterion(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.loss += loss.item() * len(labels)  # usual scripts show these after every step
            self.correct += (scores.argmax(1) == labels).sum().item()


def recipe(case: Case, **changes: object) -> Recipe:
    return Recipe(epochs=1, learning_rate=RATE, batch_size=case.batch, augment=case.augment, **changes)


def network(case: Case, seed: int = 0) -> nn.Module:
    return build(case.network, SHAPE, CLASSES, seed=seed)


def ours(case: Case, dataset: Dataset, device: str, **changes: object) -> Callable[[], None]:
    """A function that trains one epoch with `benchmarks.training.train`."""
    model, part = network(case).to(device), dataset.train.take(range(case.images))
    chosen = recipe(case, **changes)
    return lambda: require(train(model, dataset, part, chosen, seed=0).status)


def step(case: Case, dataset: Dataset, device: str) -> Callable[[], None]:
    """A function that makes as many updates as an epoch has, on one prepared batch."""
    learner = _Single(network(case).to(device), recipe(case), {}, None)
    images = dataset.train.images[: case.batch].float().div(255).contiguous(memory_format=torch.channels_last)[None]
    labels = dataset.train.labels[None, : case.batch]

    def steps() -> None:
        learner.begin(False, [RATE])
        for _ in range(case.images // case.batch):
            learner.step(images, labels, 1.0)

    return steps


def stacked(count: int, case: Case, dataset: Dataset, device: str) -> Callable[[], None]:
    """A function that trains `count` networks at once for an epoch, on the same images, each in its own order."""
    networks = Stacked([network(case, seed).to(device) for seed in range(count)])
    members = torch.arange(case.images).expand(count, case.images)

    def epoch() -> None:
        outcomes = networks.train(dataset, dataset.train, members, recipe(case), seeds=list(range(count)))
        require(*(outcome.status for outcome in outcomes))

    return epoch


def require(*statuses: str) -> None:
    """Raise RuntimeError if a training run diverged."""
    if set(statuses) != {"ok"}:
        raise RuntimeError("a training run of the measurement diverged")


def work(name: str, batch: int, size: int) -> dict[str, float]:
    """The cost of one image in training: FLOPs of matrix products and convolutions, forward only and with backward, and
    bytes of memory traffic by the rule in README.md. size: bytes per activation.
    """
    model, elements = build(name, SHAPE, CLASSES).train(), []
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda module, given, output: elements.append(output[0].numel()))
    with FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(model(torch.zeros(2, *SHAPE)), torch.zeros(2, dtype=torch.long))
        forward = counter.get_total_flops() / 2
        loss.backward()
        both = counter.get_total_flops() / 2
    pixels = SHAPE[0] * SHAPE[1] * SHAPE[2]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    moved = 5 * size * sum(elements) + (1 + 3 * size) * pixels + 40 * parameters / batch
    return {"flop_forward": forward, "flop": both, "bytes": moved}


class Quiet:
    """Measures times, and the share of other processes meanwhile; not for a loop, whose own processes would count."""

    def __init__(self):
        self.known, self.seconds, self.others = Path("/proc/stat").is_file(), 0.0, 0.0

    def timed(self, name: str, function: Callable[[], object], device: str) -> float:
        if not self.known or name.startswith("loop"):
            return timed(function, device)
        before = used()
        seconds = timed(function, device)
        self.seconds, self.others = self.seconds + seconds, self.others + used() - before
        return seconds

    def other_work(self) -> float | None:
        """Share of all cores that other processes used, or None where the system does not report it."""
        return round(max(0.0, self.others) / self.seconds / os.cpu_count(), 3) if self.known else None


def kinds(device: str) -> dict[str, str]:
    """Measured precision of matrix products, by precision of a recipe; torch's convolutions may round to TF32."""
    if device == "cpu":
        return {"float32": "float32"}
    return {"float32": "TF32" if torch.backends.cudnn.allow_tf32 else "float32", "bfloat16": "bfloat16"}


def rates(plan: Plan, device: str, products: dict[str, str]) -> dict[str, float]:
    """Present rates of the device, best of 5: FLOP/s of a large matrix product, bytes/s read and written by a copy."""
    found = {}
    for precision, kind in products.items():
        matrix = torch.randn(plan.side, plan.side, device=device, dtype=getattr(torch, precision))
        product = torch.empty_like(matrix)
        multiply = functools.partial(torch.mm, matrix, matrix, out=product)
        with tf32(kind == "TF32"):
            found[precision] = 2 * plan.side**3 / min(timed(multiply, device) for _ in range(5))
    source = torch.zeros(plan.copied, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    found["copy"] = 2 * plan.copied / min(timed(lambda: target.copy_(source), device) for _ in range(5))
    return found


@contextlib.contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Allow TF32 in matrix products. The exact old value is restored, or every compiled network would compile anew."""
    if not wanted:
        yield
        return
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, "tf32"
    yield
    settings.fp32_precision = before


def contestants(case: Case, dataset: Dataset, device: str, compiles: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    batches = loader(case, dataset, device)
    yield "loop", Loop(case, batches, device)
    if device != "cpu":
        yield "loop.bfloat16", Loop(case, batches, device, "bfloat16")
    yield "train", ours(case, dataset, device)
    if compiles:
        yield "train.compile", ours(case, dataset, device, compile=True)
        if device != "cpu":
            yield "train.compile.bfloat16", ours(case, dataset, device, compile=True, precision="bfloat16")
    yield "step", step(case, dataset, device)


def measure(plan: Plan, device: str, products: dict[str, str], compiles: bool) -> dict[str, object]:
    """Measure everything in turns: networks one by one, and those trained at once."""
    dataset = random_dataset(max(*(case.images for case in plan.cases), plan.each), SHAPE, CLASSES).to(device)
    together = Case("plaincnn", "shift", plan.cases[0].batch, plan.each)
    groups = [(case, dict(contestants(case, dataset, device, compiles))) for case in plan.cases]
    stacks = {str(count): stacked(count, together, dataset, device) for count in plan.stacked}
    groups.append((together, {"one": ours(together, dataset, device), **stacks}))
    seconds = [{name: [] for name in group} for _, group in groups]
    reached: list[dict[str, float]] = []
    quiet = Quiet()
    for repeat in range(-1, plan.repeats):
        found = [{name: quiet.timed(name, function, device) for name, function in group.items()} for _, group in groups]
        rate = rates(plan, device, products)
        for (case, _), times in zip(groups, found, strict=True):
            shown = ", ".join(f"{name} {value:.2f}" for name, value in times.items())
            print(f"turn {repeat + 1}, {case.network}, seconds: {shown}", file=sys.stderr)
        if repeat < 0:
            quiet = Quiet()  # compiling has ended
        else:
            reached.append(rate)
            for kept, times in zip(seconds, found, strict=True):
                for name, value in times.items():
                    kept[name].append(value)

    def per_image(case: Case, times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
        networks = {name: int(name) if name.isdecimal() else 1 for name in times}
        return of({name: [t / (case.images * networks[name]) for t in turns] for name, turns in times.items()})

    results = [
        {
            "network": case.network,
            "augment": case.augment,
            "batch": case.batch,
            "images": case.images,
            "work": {kind: work(case.network, case.batch, 2 if kind == "bfloat16" else 4) for kind in products},
            "seconds_per_image": per_image(case, times),
        }
        for (case, _), times in zip(groups, seconds, strict=True)
    ]
    middle = {key: statistics.median(each[key] for each in reached) for key in reached[0]}
    return {
        "rates": {key: float(f"{value:.4g}") for key, value in middle.items()},
        "cases": results[:-1],
        "stacked": results[-1],
        "other_work": quiet.other_work(),
    }


def uncompilable(device: str) -> str | None:
    """Why torch cannot compile here, for example without a C++ compiler; None where it can."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(1000, device=device))
    except Exception as error:  # a missing or broken compiler makes torch raise many kinds
        return f"`torch.compile` fails here ({type(error).__name__})"
    return None


def options(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=PLANS, default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the host; default 1 for the CPU, else torch's own")
    parser.add_argument("--repeats", type=int, help="turns that count")
    parser.add_argument("--quick", action="store_true", help="a few images, nothing compiled: only to see that it runs")
    parser.add_argument("--out", type=Path, help="folder of training.json and README.md; default this script's own")
    chosen = parser.parse_args(given)
    chosen.out = chosen.out or (WORK / "quick" if chosen.quick else HERE)
    return chosen


def main(given: list[str] | None = None) -> None:
    chosen = options(given)
    device = chosen.device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here")
    threads = chosen.threads or (1 if device == "cpu" else torch.get_num_threads())
    torch.set_num_threads(threads)
    plan = QUICK if chosen.quick else PLANS[device]
    if chosen.repeats:
        plan = replace(plan, repeats=chosen.repeats)
    reason = "`--quick` compiles nothing" if chosen.quick else uncompilable(device)
    products = kinds(device)
    found = measure(plan, device, products, not reason)
    about = machine()
    about["versions"]["torchvision"] = torchvision.__version__.partition("+")[0]
    about["other_work"] = found.pop("other_work")
    if device == "cuda":
        about["accelerator"] = torch.cuda.get_device_name()
        about["versions"]["CUDA"] = torch.version.cuda
    found |= {
        "machine": about,
        "quick": chosen.quick,
        "repeats": plan.repeats,
        "threads": threads,
        "workers": workers(device),
        "product": products,
        "skipped": {"train.compile": reason} if reason else {},
    }
    path = chosen.out / "training.json"
    write_json(path, {**(read_json(path) if path.is_file() else {}), device: found})
    _table.write(chosen.out)


if __name__ == "__main__":
    main()
