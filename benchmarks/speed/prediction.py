"""How fast KNOWN's prediction is, compared with the authors' Keras network and with the limits of the processor.

    python -m benchmarks.speed.prediction

This script writes prediction.json and README.md into its folder. All contestants predict the same windows in one run
and take turns, so that slow minutes of the machine affect all equally; the median of the turns counts. Keras runs in
its own interpreter (an environment in work/speed/keras, made on the first run) and makes one prediction at a time; only
the call of `predict` is timed. Without KNOW_REFERENCE, the folder of the authors' weights, our weights replace them.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed import _table
from know import keras
from know.files import write_json
from know.known import Known, KnownNet, compiled

HERE, WORK = Path(__file__).parent, Path(__file__).parents[2] / "work" / "speed"
COUNT, CHUNK, REPEATS, THREADS = 1 << 20, 16384, 7, (2, 1)
CHECKED = 1 << 17
"""Number of windows on which answers are compared with float64."""
REQUIRED = {"times_keras": 2.0, "times_floor": 2.0, "deviation": 1e-6}
"""Limits for our prediction: least speed relative to Keras, most time relative to the floor, most error to float64."""


def windows(count: int) -> Tensor:
    """Histories (count, 5) like conv weights: their size is He's initialisation at 64 channels, each step a tenth."""
    dice = torch.Generator().manual_seed(0)
    steps = 0.006 * torch.randn(count, 4, generator=dice)
    return torch.cat([0.06 * torch.randn(count, 1, generator=dice), steps], dim=1).cumsum(1)


class Keras:
    """A process that predicts with the released network on that many threads, once per `turn`."""

    def __init__(self, python: Path, threads: int):
        self.folder = WORK / f"keras-{threads}"
        command = [python, HERE / "_keras.py", self.folder, keras.paths("released")[0], str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(list(map(str, command)), **pipes)
        self.versions = self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the Keras process ended early; run benchmarks/speed/_keras.py by hand to see why")
        return json.loads(line)

    def turn(self) -> float:
        """Make one prediction; returns its seconds."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()["seconds"]

    def answer(self) -> Tensor:
        """End the process; returns its last prediction."""
        self.process.communicate()
        return torch.from_numpy(np.load(self.folder / "keras.npy"))


def keras_python() -> tuple[Path | None, str | None]:
    """Interpreter of an environment with tensorflow-cpu, made if needed; or None and the reason."""
    if reason := keras.missing("released"):
        return None, reason
    python = WORK / "keras" / "bin" / "python"
    probe = [python, "-c", "import tensorflow, tf_keras"]
    if python.is_file() and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return python, None
    packages = ("tensorflow-cpu>=2.16,<3", "tf-keras>=2.16,<3")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    for command in ([sys.executable, "-m", "venv", "--clear", WORK / "keras"], install, probe):
        if subprocess.run(command, check=False).returncode:
            return None, f"an environment with {' and '.join(packages)} could not be made"
    return python, None


def chunked(net: Callable[[Tensor], Tensor], window: Tensor) -> Tensor:
    return torch.cat([net(part) for part in window.split(CHUNK)])


def timed(function: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one call; on a GPU, until the GPU has finished it."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    started = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - started


def floor_rates() -> dict[str, float]:
    """Rates of the machine with torch's present threads: sgemm (FLOP/s), exponentials in cache (1/s); best of 5."""
    matrix, some = torch.randn(2048, 2048), torch.randn(1 << 17)
    space, many = torch.empty_like(some), 50
    sgemm = min(timed(lambda: matrix @ matrix) for _ in range(5))
    exps = min(timed(lambda: [torch.exp(some, out=space) for _ in range(many)]) for _ in range(5))
    return {"sgemm_flops": 2 * 2048**3 / sgemm, "exps": many * len(some) / exps}


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "numpy", "numba") if compiled() else ("torch", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "processor": named[0] if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions},
    }


def used() -> float:
    """Processor seconds of all processes since the start, except this one and its finished children."""
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="utf-8").split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


@torch.no_grad()
def main() -> None:
    began, others = time.perf_counter(), used() if Path("/proc/stat").is_file() else None
    python, no_keras = keras_python()
    window, skipped = windows(COUNT), {}
    theirs = not keras.missing("released")
    known = Known.from_keras(keras.paths("released")[0].parent) if theirs else Known.pretrained("general", 5)
    net, about = known.nets["conv"], machine()
    contestants: dict[str, Callable[[int], float]] = {}
    answers: dict[str, Callable[[], Tensor]] = {}

    def enter(name: str, function: Callable[[], Tensor]) -> None:
        contestants[name] = lambda threads: timed(function)
        answers[name] = lambda: function()[:CHECKED]

    enter("torch", lambda: known.residual(window, "conv", chunk=CHUNK))
    if shutil.which(os.environ.get("CXX", "g++")):
        faster = torch.compile(copy.deepcopy(net), dynamic=False)
        enter("torch.compile", lambda: chunked(faster, window))
    else:
        skipped["torch.compile"] = "there is no C++ compiler"
    if compiled():
        enter("know", lambda: known.residual(window, "conv"))
    else:
        skipped["know"] = "numba is not installed"
    peers: dict[int, Keras] = {}
    if python:
        for threads in THREADS:
            (WORK / f"keras-{threads}").mkdir(parents=True, exist_ok=True)
            np.save(WORK / f"keras-{threads}" / "window.npy", window.numpy())
            peers[threads] = Keras(python, threads)
        contestants = {"keras": lambda threads: peers[threads].turn(), **contestants}
        about["versions"] |= peers[THREADS[0]].versions
    else:
        skipped["keras"] = no_keras

    seconds = {threads: {name: [] for name in contestants} for threads in THREADS}
    rates: dict[int, list[dict[str, float]]] = {threads: [] for threads in THREADS}
    for repeat in range(-1, REPEATS):  # the first turn compiles and warms up
        for threads in THREADS:
            torch.set_num_threads(threads)
            turns = {name: turn(threads) / COUNT for name, turn in contestants.items()}
            if repeat >= 0:
                rates[threads].append(floor_rates())
                for name, value in turns.items():
                    seconds[threads][name].append(value)
    answered = {name: answer() for name, answer in answers.items()}
    for peer in peers.values():  # their answers are the same
        answered["keras"] = peer.answer()[:CHECKED]
    if others is not None:  # else the load is unknown
        about["other_work"] = round((used() - others) / (time.perf_counter() - began) / os.cpu_count(), 3)
    exact = chunked(copy.deepcopy(net).double(), window[:CHECKED].double())
    write_json(
        HERE / "prediction.json",
        {
            "machine": about,
            "network": "released" if theirs else "general",
            "windows": COUNT,
            "repeats": REPEATS,
            "threads": {
                str(threads): {"seconds_per_weight": of(seconds[threads]), **floor(net, rates[threads])}
                for threads in THREADS
            },
            "deviation": {name: float((answer - exact).abs().max()) for name, answer in answered.items()},
            "largest_step": float(exact.abs().max()),
            "skipped": skipped,
            "required": REQUIRED,
        },
    )
    _table.write()


def of(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    kinds = {"median": statistics.median, "fastest": min, "slowest": max}
    return {name: {kind: float(f"{f(turns):.4g}") for kind, f in kinds.items()} for name, turns in seconds.items()}


def floor(net: KnownNet, rates: list[dict[str, float]]) -> dict[str, float]:
    """Median rates, and the time per weight if multiplications, then exponentials, ran at these rates."""
    flops, exps = 2 * sum(p.numel() for p in net.parameters() if p.ndim == 2), 2 * 64
    found = {key: statistics.median(each[key] for each in rates) for key in rates[0]}
    seconds = flops / found["sgemm_flops"] + exps / found["exps"]
    return {key: float(f"{value:.4g}") for key, value in {**found, "flop_per_weight": flops, "floor": seconds}.items()}


if __name__ == "__main__":
    main()
