"""README.md of this folder, from the json files beside it: `python benchmarks/speed/_table.py`.

One function per json file that a measurement here writes; a file that is missing has no section.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from know.files import read_json, write_text

HERE = Path(__file__).parent
NAMES = {
    "keras": "released Keras network, `model.predict`, batches of 100,000",
    "torch": "`know` without numba: torch, chunks of 16,384",
    "torch.compile": "the same module under `torch.compile`",
    "know": "**`know`**: compiled kernel (`know/fast.py`)",
}


def prediction(found: dict) -> list[str]:
    machine, required = found["machine"], found["required"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    network = "the authors' released conv network" if found["network"] == "released" else "the conv network that ships"
    lines = [
        "## Prediction of many weights on a CPU",
        "",
        f"One step of KNOWN for {found['windows']:,} histories of five float32 values, of the size of convolution",
        f"kernels, with {network}. Median of {found['repeats']} turns, in each of which all took part",
        "one after the other, after one to warm up; in brackets the fastest and the slowest turn.",
        "",
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['capability']}, {machine['system']};",
        f"{versions}.",
        *_disturbed(machine.get("other_work")),
        "",
        "```sh",
        "KNOW_REFERENCE=FOLDER python benchmarks/speed/prediction.py   # FOLDER: the authors' KNOWN_*.h5",
        "```",
        "",
    ]
    for threads, measured in found["threads"].items():
        seconds = measured["seconds_per_weight"]
        lines += [
            f"| {_threads(threads)} | ns per weight | speed, Keras = 1 | time, floor = 1 |",
            "|---|--:|--:|--:|",
        ]
        keras = seconds.get("keras", {}).get("median")
        for name in (name for name in NAMES if name in seconds):
            median, fastest, slowest = (1e9 * seconds[name][kind] for kind in ("median", "fastest", "slowest"))
            times = f"{keras / seconds[name]['median']:.1f}" if keras else "-"
            below = f"{seconds[name]['median'] / measured['floor']:.2f}"
            lines.append(f"| {NAMES[name]} | {median:.0f} ({fastest:.0f}-{slowest:.0f}) | {times} | {below} |")
        lines += [f"| floor | {1e9 * measured['floor']:.0f} | | 1 |", ""]
    one = next(iter(found["threads"].values()))
    lines += [
        f"The floor is {one['flop_per_weight'] / 1e3:.1f} kFLOP at the rate of torch's large matrix product plus 128",
        "exponentials at the rate of torch's `exp` on an array in the cache, measured in the same turns:",
    ]
    for threads, measured in found["threads"].items():
        rates = f"{measured['sgemm_flops'] / 1e9:.0f} GFLOP/s and {measured['exps'] / 1e9:.2f}e9 exponentials a second"
        lines.append(f"{rates} on {_threads(threads)};")
    lines[-1] = lines[-1].removesuffix(";") + "."
    lines += [
        "It is a yardstick, no bound: folding two pairs of matrices into one saves the kernel some of the work.",
        "Keras is given the differences ready made; the others compute them.",
        "",
        "| | largest deviation from float64 |",
        "|---|--:|",
        *(f"| {NAMES[name]} | {found['deviation'][name]:.1e} |" for name in NAMES if name in found["deviation"]),
        "",
        f"Steps here reach {found['largest_step']:.2g}.",
        "",
        *(f"Left out: {NAMES[name]}, since {reason}." for name, reason in sorted(found["skipped"].items())),
        *([""] if found["skipped"] else []),
        "| required of `know` | reached | |",
        "|---|---|---|",
    ]
    for threads, measured in found["threads"].items():
        seconds = measured["seconds_per_weight"]
        if "keras" in seconds and "know" in seconds:
            times = seconds["keras"]["median"] / seconds["know"]["median"]
            wanted = f"at least {required['times_keras']:g} times the speed of Keras, {_threads(threads)}"
            lines.append(f"| {wanted} | {times:.1f} | {_verdict(times >= required['times_keras'])} |")
        if "know" in seconds:
            times = seconds["know"]["median"] / measured["floor"]
            wanted = f"at most {required['times_floor']:g} times the floor, {_threads(threads)}"
            lines.append(f"| {wanted} | {times:.2f} | {_verdict(times <= required['times_floor'])} |")
    if "know" in found["deviation"]:
        deviation = found["deviation"]["know"]
        wanted = f"within {required['deviation']:.0e} of float64"
        lines.append(f"| {wanted} | {deviation:.1e} | {_verdict(deviation <= required['deviation'])} |")
    return [*lines, ""]


def streaming(found: dict) -> list[str]:
    machine, memory = found["machine"], found["memory_mb"]
    seconds = {name: found["seconds"][name]["median"] for name in found["seconds"]}
    share = seconds["memory"] / seconds["files"]
    weight = seconds["files"] / found["weights"]
    lines = [
        "## Files that are larger than the memory that is used",
        "",
        f"`know predict` on five snapshots of {found['weights']:,} float32 weights, {found['gib']:g} GiB each, most",
        "of them in one tensor: read, hashed, predicted and written, the files being in the system's cache;",
        f"beside it, the same prediction with all snapshots in memory. Median of {found['repeats']} turns on",
        f"{_threads(str(found['threads']))}, each in a process of its own; in brackets the fastest and the slowest.",
        f"Machine: {machine['processor']}, {machine['cores']} cores.",
        *_disturbed(machine.get("other_work")),
        "",
        "```sh",
        "python benchmarks/speed/streaming.py   # needs 7 GiB of disk, and 16 GiB of memory to compare with",
        "```",
        "",
        "| | seconds | ns per weight | resident memory above an interpreter with torch |",
        "|---|--:|--:|--:|",
    ]
    names = {"files": "**`know predict`**, from files to a file", "memory": "`know.predict`, all in memory"}
    for name, label in names.items():
        times = found["seconds"][name]
        spread = f"{times['median']:.1f} ({times['fastest']:.1f}-{times['slowest']:.1f})"
        nanoseconds = 1e9 * times["median"] / found["weights"]
        lines.append(f"| {label} | {spread} | {nanoseconds:.0f} | {memory[name]:,.0f} MB |")
    required, most = found["required"], memory["files"]
    lines += [
        "",
        "| required of `know predict` | reached | |",
        "|---|---|---|",
        f"| at most {required['memory_mb']} MB | {most:,.0f} MB | {_verdict(most <= required['memory_mb'])} |",
        f"| at least {required['share']:.0%} of the speed in memory | {share:.0%} "
        f"| {_verdict(share >= required['share'])} |",
        "",
        "Extrapolated from that, for five snapshots in bf16 on this machine (nobody has run it):",
        "",
        "| weights | hours | read | written | memory |",
        "|---|--:|--:|--:|--:|",
    ]
    for billions in (7, 70):
        hours, size = billions * 1e9 * weight / 3600, 2 * billions
        lines.append(f"| {billions} billion | {hours:.1f} | {5 * size} GB | {size} GB | {most:,.0f} MB |")
    lines += [
        "",
        f"The time is the processor's: only a disk that reads less than {1e3 * 5 * 2 / weight / 1e9:.0f} MB a second "
        "would make it longer.",
        "More cores make it shorter; so do more machines, as shards can be predicted on their own.",
    ]
    return [*lines, ""]


ARMS = {
    "loop": "DataLoader loop",
    "loop.bfloat16": "DataLoader loop, bfloat16",
    "train": "**`benchmarks.training.train`**",
    "train.compile": "the same, `compile`",
    "train.compile.bfloat16": "the same, `compile`, bfloat16",
    "step": "its step alone, on a batch that is ready",
    "one": "one after another, `train`",
}
DEVICES = {"cpu": "python benchmarks/speed/training.py", "cuda": "python benchmarks/speed/training.py --device cuda"}


def training(found: dict) -> list[str]:
    lines = [
        "## Training",
        "",
        "How fast pictures go through forward, backward and update: random ones of 32x32x3 and ten classes,",
        "with Adam, in float32 where nothing else is said. Three things are compared on the same network,",
        "batch size, optimiser and kind of augmentation:",
        "",
        "- the *loop* is a training script as one usually writes it, in the style of torchvision's reference",
        "  scripts: a DataLoader, torchvision's transforms on one PIL picture at a time, loss and accuracy",
        "  read by the host after every step;",
        "- *train* is this project's (`benchmarks.training`): the pictures lie on the device as bytes, a batch is",
        "  augmented at once, and the host waits once per epoch;",
        "- the *step alone* is its step on one and the same batch: only network and optimiser are left, so",
        "  *train* cannot be faster unless the network is (`compile`, bfloat16).",
        "",
        "`shift` moves by up to 4 pixels and mirrors (the loop: RandomCrop and RandomHorizontalFlip);",
        "`affine` rotates, shifts and zooms (the loop: RandomAffine).",
        "",
        "The *floor* of the time per image is the larger of two times: the FLOPs of its matrix products and",
        "convolutions, forward and backward (torch's FlopCounterMode), at the rate of a large matrix product;",
        "and its bytes, at the rate of a large copy. Both rates are measured in the same turns. Bytes are",
        "counted by a rule:",
        "",
        "- what a convolution, normalisation or linear layer puts out is written once, read once in forward",
        "  and once in backward, and its gradient is written and read; whatever lies between such layers is",
        "  free;",
        "- the picture is read as bytes, written as floats, and these are read twice;",
        "- a step moves ten times the size of the parameters, shared by the images of the batch: weights read",
        "  in forward and in backward, gradients written and read, weights and Adam's two moments read and",
        "  written.",
        "",
        "The floor is a yardstick, no bound: caches spare traffic, and some ways to convolve spare",
        "multiplications. *Of the rate* is the share of the matrix product's rate that is reached.",
        "",
        "For the horizon: the authors of [cifar10-airbench](https://github.com/KellerJordan/cifar10-airbench)",
        "report 94 % on CIFAR-10 in 2.6 seconds on one A100. That figure is theirs and is about another task,",
        "to reach an accuracy with network and recipe tuned for it; nothing of the kind is measured here.",
        "",
    ]
    for device, command in DEVICES.items():
        if device in found:
            lines += _trained(found[device], device, command)
        else:
            name = {"cpu": "a CPU", "cuda": "a GPU"}[device]
            lines += [f"There are no figures of {name} yet; to be measured: `{command}`.", ""]
    return lines


def _trained(found: dict, device: str, command: str) -> list[str]:
    machine, reached = found["machine"], found["rates"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    host = f"{machine['processor']}, {machine['cores']} cores"
    title = f"On a CPU, {_threads(str(found['threads']))}" if device == "cpu" else "On a GPU"
    facts = f"{host}, {machine['capability']}" if device == "cpu" else f"{machine['accelerator']}; host: {host}"
    loads = f"{found['workers']} processes load" if found["workers"] else "no process beside the loop's own loads"
    lines = [
        f"### {title}",
        "",
        *(["**Made with `--quick`: these times say nothing.**", ""] if found["quick"] else []),
        f"Median of {found['repeats']} turns, in each of which all took part one after the other, after one to warm up",
        "and compile; in brackets the slowest and the fastest turn. A turn is one epoch with a new optimiser.",
        f"In the loop {loads} data.",
        f"Machine: {facts}, {machine['system']};",
        f"{versions}.",
        *_disturbed(machine.get("other_work")),
        "",
        "```sh",
        command,
        "```",
        "",
    ]
    products = [f"{reached[key] / 1e9:,.0f} GFLOP/s in {kind}" for key, kind in found["product"].items()]
    lines += [
        f"Rates: matrix product {', '.join(products)}; copy {reached['copy'] / 1e9:.3g} GB/s, read and written.",
        "",
    ]
    for case in found["cases"]:
        seconds, title = case["seconds_per_image"], f"{case['network']}, batch {case['batch']}, {case['augment']}"
        lines += [f"| {title} | images/s | speed, loop = 1 | µs an image | floor, µs | of the rate |"]
        lines += ["|---|--:|--:|--:|--:|--:|"]
        for name in (name for name in ARMS if name in seconds):
            speed = seconds["loop"]["median"] / seconds[name]["median"]
            lines.append(_speed(name, seconds[name], speed, case, reached))
        lines.append("")
    case = found["stacked"]
    seconds = case["seconds_per_image"]
    lines += [
        f"Many networks at once (`benchmarks.stacked`): {case['network']}, batch {case['batch']}, {case['augment']}, "
        f"{case['images']:,} images for",
        "each network; what is counted are the images of all together.",
        "",
        "| networks at once | images/s | speed, one after another = 1 | µs an image | floor, µs | of the rate |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    counts = sorted((name for name in seconds if name != "one"), key=int)
    for name in ("one", *counts):
        lines.append(_speed(name, seconds[name], seconds["one"]["median"] / seconds[name]["median"], case, reached))
    if device == "cpu":
        lines += [
            "",
            "A CPU has no idle units for more networks to fill, and stacked images change their memory order often.",
        ]
    lines += [
        "",
        "What an image costs:",
        "",
        "| | MFLOP | of them forward | kB | µs at the product's rate | µs at the copy's |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    listed = set()
    for case in found["cases"]:
        for precision, work in case["work"].items():
            label = f"{case['network']}, batch {case['batch']}" + f", {precision}" * (len(case["work"]) > 1)
            if label not in listed:
                product, copy = (1e6 * each for each in _bounds(work, reached, precision))
                cells = f"{work['flop'] / 1e6:,.1f} | {work['flop_forward'] / 1e6:,.1f} | {work['bytes'] / 1e3:,.0f}"
                lines.append(f"| {label} | {cells} | {_three(product)} | {_three(copy)} |")
            listed.add(label)
    lines += ["", *(f"Left out: {ARMS[n]}, since {reason}.\n" for n, reason in sorted(found["skipped"].items()))]
    return lines


def _speed(name: str, seconds: dict, speed: float, case: dict, reached: dict) -> str:
    """A row: images a second with their spread, speed, time and floor of one image, share of the product's rate."""
    precision = "bfloat16" if "bfloat16" in name else "float32"
    work = case["work"][precision]
    median, slowest, fastest = (_three(1 / seconds[kind]) for kind in ("median", "slowest", "fastest"))
    rates = f"{median} ({slowest}-{fastest})"
    floor, share = max(_bounds(work, reached, precision)), work["flop"] / seconds["median"] / reached[precision]
    times = f"{_three(1e6 * seconds['median'])} | {_three(1e6 * floor)}"
    return f"| {ARMS.get(name, name)} | {rates} | {speed:.2f} | {times} | {share:.{1 if share < 0.1 else 0}%} |"


def _bounds(work: dict, reached: dict, precision: str) -> tuple[float, float]:
    """Seconds of one image at the rates of the matrix product and of the copy."""
    return work["flop"] / reached[precision], work["bytes"] / reached["copy"]


def _three(value: float) -> str:
    """With three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _disturbed(share: float | None) -> list[str]:
    """A warning where other processes took more than a twentieth of the processor while it was measured."""
    if share is None or share < 0.05:
        return []
    return ["", f"**The machine was not quiet**: other work took {share:.0%} of it, so these times are too long."]


def _threads(count: str) -> str:
    return f"{count} thread{'s' * (count != '1')}"


def _verdict(met: bool) -> str:
    return "met" if met else "**not met**"


SECTIONS: dict[str, Callable[[dict], list[str]]] = {
    "prediction": prediction,
    "streaming": streaming,
    "training": training,
}
"""Name of a json file here, and what makes its section."""


def page(folder: Path = HERE) -> str:
    lines = ["# Speed", "", "Written by the scripts of this folder from the json files beside it, nothing by hand.", ""]
    for name, section in SECTIONS.items():
        if (folder / f"{name}.json").is_file():
            lines += section(read_json(folder / f"{name}.json"))
    return "\n".join(lines).rstrip() + "\n"


def write(folder: Path = HERE) -> None:
    write_text(folder / "README.md", page(folder))


if __name__ == "__main__":
    write()
