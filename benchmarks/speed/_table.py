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
    "know": "**`know`**: compiled kernel (`know/kernel.py`)",
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


def _disturbed(share: float | None) -> list[str]:
    """A warning where other processes took more than a twentieth of the processor while it was measured."""
    if share is None or share < 0.05:
        return []
    return ["", f"**The machine was not quiet**: other work took {share:.0%} of it, so these times are too long."]


def _threads(count: str) -> str:
    return f"{count} thread{'s' * (count != '1')}"


def _verdict(met: bool) -> str:
    return "met" if met else "**not met**"


SECTIONS: dict[str, Callable[[dict], list[str]]] = {"prediction": prediction, "streaming": streaming}
"""Name of a json file here, and what makes its section."""


def page() -> str:
    lines = ["# Speed", "", "Written by the scripts of this folder from the json files beside it, nothing by hand.", ""]
    for name, section in SECTIONS.items():
        if (HERE / f"{name}.json").is_file():
            lines += section(read_json(HERE / f"{name}.json"))
    return "\n".join(lines).rstrip() + "\n"


def write() -> None:
    write_text(HERE / "README.md", page())


if __name__ == "__main__":
    write()
