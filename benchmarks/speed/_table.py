"""README.md of this folder, from the json files beside it: `python -m benchmarks.speed._table`.

The words stand in benchmarks/report/templates/speed.md.j2. A json file that is missing has no section.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.report.template import fill
from know.files import read_json, write_text

HERE = Path(__file__).parent
NAMES = {
    "keras": "the authors' Keras network, `model.predict`, batches of 100,000",
    "torch": "`know` without numba: torch, chunks of 16,384",
    "torch.compile": "the same module under `torch.compile`",
    "know": "**`know`**: compiled kernel (`know/fast.py`)",
}
"""Ways to predict, in the order of the tables."""
ARMS = {
    "loop": "DataLoader loop",
    "loop.bfloat16": "DataLoader loop, bfloat16",
    "train": "**`benchmarks.training.train`**",
    "train.compile": "the same, `compile`",
    "train.compile.bfloat16": "the same, `compile`, bfloat16",
    "step": "its step alone, on a batch that is ready",
    "one": "one after another, `train`",
}
"""Ways to train, in the order of the tables."""
REQUIRED = ["reached", ""]


def threads(count: int | str) -> str:
    """ "1 thread", "2 threads"."""
    return f"{count} thread{'s' * (str(count) != '1')}"


def verdict(met: bool) -> str:
    """Whether a requirement is met; bold where it is not."""
    return "met" if met else "**not met**"


def predicted(measured: dict[str, Any], count: str) -> pd.DataFrame:
    """Time per weight of every way to predict, with its spread, beside Keras and beside the floor."""
    seconds, rows = measured["seconds_per_weight"], []
    keras = seconds.get("keras", {}).get("median")
    for name in (name for name in NAMES if name in seconds):
        median, fastest, slowest = (1e9 * seconds[name][kind] for kind in ("median", "fastest", "slowest"))
        speed = f"{keras / seconds[name]['median']:.1f}" if keras else "-"
        below = f"{seconds[name]['median'] / measured['floor']:.2f}"
        rows.append([NAMES[name], f"{median:.0f} ({fastest:.0f}-{slowest:.0f})", speed, below])
    rows.append(["floor", f"{1e9 * measured['floor']:.0f}", "", "1"])
    return pd.DataFrame(rows, columns=[threads(count), "ns per weight", "speed, Keras = 1", "time, floor = 1"])


def prediction_required(measurement: dict[str, Any]) -> pd.DataFrame:
    """What is required of the prediction, what was reached, and whether that is enough."""
    required, deviation, rows = measurement["required"], measurement["deviation"].get("know"), []
    for count, measured in measurement["threads"].items():
        medians = {name: times["median"] for name, times in measured["seconds_per_weight"].items()}
        if {"keras", "know"} <= set(medians):
            speed, least = medians["keras"] / medians["know"], required["times_keras"]
            wanted = f"at least {least:g} times the speed of Keras, {threads(count)}"
            rows.append([wanted, f"{speed:.1f}", verdict(speed >= least)])
        if "know" in medians:
            times, most = medians["know"] / measured["floor"], required["times_floor"]
            rows.append([f"at most {most:g} times the floor, {threads(count)}", f"{times:.2f}", verdict(times <= most)])
    if deviation is not None:
        most = required["deviation"]
        rows.append([f"within {most:.0e} of float64", f"{deviation:.1e}", verdict(deviation <= most)])
    return pd.DataFrame(rows, columns=["required of `know`", *REQUIRED])


def streamed(measurement: dict[str, Any]) -> pd.DataFrame:
    """Time and memory of a prediction from files to a file, and of one in memory."""
    rows = []
    names = {"files": "**`know predict`**, from files to a file", "memory": "`know.predict`, all in memory"}
    for name, label in names.items():
        times = measurement["seconds"][name]
        spread = f"{times['median']:.1f} ({times['fastest']:.1f}-{times['slowest']:.1f})"
        nanoseconds = 1e9 * times["median"] / measurement["weights"]
        rows.append([label, spread, f"{nanoseconds:.0f}", f"{measurement['memory_mb'][name]:,.0f} MB"])
    memory = "resident memory above an interpreter with torch"
    return pd.DataFrame(rows, columns=["", "seconds", "ns per weight", memory])


def streaming_required(measurement: dict[str, Any]) -> pd.DataFrame:
    """What is required of the prediction from files, what was reached, and whether that is enough."""
    required, used = measurement["required"], measurement["memory_mb"]["files"]
    most, least = required["memory_mb"], required["share"]
    share = measurement["seconds"]["memory"]["median"] / measurement["seconds"]["files"]["median"]
    rows = [
        [f"at most {most} MB", f"{used:,.0f} MB", verdict(used <= most)],
        [f"at least {least:.0%} of the speed in memory", f"{share:.0%}", verdict(share >= least)],
    ]
    return pd.DataFrame(rows, columns=["required of `know predict`", *REQUIRED])


def extrapolated(measurement: dict[str, Any]) -> pd.DataFrame:
    """Time, traffic and memory that larger networks in bf16 would take."""
    weight, rows = measurement["seconds"]["files"]["median"] / measurement["weights"], []
    for billions in (7, 70):
        hours, size = billions * 1e9 * weight / 3600, 2 * billions
        memory = f"{measurement['memory_mb']['files']:,.0f} MB"
        rows.append([f"{billions} billion", f"{hours:.1f}", f"{5 * size} GB", f"{size} GB", memory])
    return pd.DataFrame(rows, columns=["weights", "hours", "read", "written", "memory"])


def trained(case: dict[str, Any], rates: dict[str, float], head: str, baseline: str) -> pd.DataFrame:
    """Images a second of every way to train; baseline: the way whose speed is 1.

    rates: FLOP/s of the matrix product by precision, and bytes/s of a copy.
    """
    seconds, rows = case["seconds_per_image"], []
    numbers = sorted((name for name in seconds if name.isdecimal()), key=int)  # of networks that are trained at once
    for name in [*(name for name in ARMS if name in seconds), *numbers]:
        precision = "bfloat16" if "bfloat16" in name else "float32"
        work, median = case["work"][precision], seconds[name]["median"]
        floor, share = max(bounds(work, rates, precision)), work["flop"] / median / rates[precision]
        images = "{} ({}-{})".format(*(three(1 / seconds[name][kind]) for kind in ("median", "slowest", "fastest")))
        speed = f"{seconds[baseline]['median'] / median:.2f}"
        times = [three(1e6 * median), three(1e6 * floor), f"{share:.{1 if share < 0.1 else 0}%}"]
        rows.append([ARMS.get(name, name), images, speed, *times])
    one = {"loop": "speed, loop = 1", "one": "speed, one after another = 1"}[baseline]
    return pd.DataFrame(rows, columns=[head, "images/s", one, "µs an image", "floor, µs", "of the rate"])


def image_costs(measurement: dict[str, Any]) -> pd.DataFrame:
    """FLOP and bytes of an image of every network, and their times at the measured rates; one row per network."""
    rows: dict[str, list[str]] = {}
    for case in measurement["cases"]:
        for precision, work in case["work"].items():
            label = f"{case['network']}, batch {case['batch']}" + f", {precision}" * (len(case["work"]) > 1)
            times = [three(1e6 * each) for each in bounds(work, measurement["rates"], precision)]
            mega = [f"{work[key] / 1e6:,.1f}" for key in ("flop", "flop_forward")]
            rows.setdefault(label, [label, *mega, f"{work['bytes'] / 1e3:,.0f}", *times])
    head = ["", "MFLOP", "of them forward", "kB", "µs at the product's rate", "µs at the copy's"]
    return pd.DataFrame(list(rows.values()), columns=head)


def bounds(work: dict[str, float], rates: dict[str, float], precision: str) -> tuple[float, float]:
    """Seconds of one image at the rates of the matrix product and of the copy."""
    return work["flop"] / rates[precision], work["bytes"] / rates["copy"]


def three(value: float) -> str:
    """A number with three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def page(folder: Path = HERE) -> str:
    """README.md, in Markdown, from the json files in a folder."""
    names = ("prediction", "streaming", "training")
    paths = {name: folder / f"{name}.json" for name in names}
    measurements = {name: read_json(path) if path.is_file() else None for name, path in paths.items()}
    functions = (
        predicted,
        prediction_required,
        streamed,
        streaming_required,
        extrapolated,
        trained,
        image_costs,
    )
    tables = {function.__name__: function for function in functions}
    return fill("speed.md.j2", **measurements, names=NAMES, arms=ARMS, threads=threads, **tables)


def write(folder: Path = HERE) -> None:
    """Write README.md into a folder with json files."""
    write_text(folder / "README.md", page(folder))


if __name__ == "__main__":
    write()
