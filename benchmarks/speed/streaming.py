"""How much time and memory `know predict` needs for files that are larger than the memory it may use.

    python -m benchmarks.speed.streaming

This script writes streaming.json and README.md into its folder. Snapshots of random weights are made in
work/speed/snapshots and removed at the end. Both ways to predict take turns, each in its own process. Only the
prediction is timed, neither the start of the process nor the loading of snapshots into memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.speed import _table
from benchmarks.speed.prediction import machine, of, used
from know.files import write_json

HERE, WORK = Path(__file__).parent, Path(__file__).parents[2] / "work" / "speed" / "snapshots"
ROWS, COLUMNS = {"embedding.weight": 240, "fc.weight": 16}, 1 << 20
FRACTIONS, REPEATS, THREADS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), 3, 2
REQUIRED = {"memory_mb": 700, "share": 0.8}


def make() -> list[Path]:
    """Make five snapshots, 1 GiB each. All rows are equal, which does not make a prediction cheaper."""
    entries, offset = {}, 0
    for name, rows in ROWS.items():
        end = offset + 4 * rows * COLUMNS
        entries[name] = {"dtype": "F32", "shape": [rows, COLUMNS], "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    block = 0.06 * torch.randn(COLUMNS, generator=torch.Generator().manual_seed(0))
    WORK.mkdir(parents=True, exist_ok=True)
    paths = [WORK / f"s{k}.safetensors" for k in reversed(range(5))]
    for k, path in enumerate(paths):
        with path.open("wb") as handle:
            handle.write(len(header).to_bytes(8, "little") + header)
            for _ in range(sum(ROWS.values())):
                handle.write((block * (0.95 + 0.01 * k)).numpy().tobytes())
    return paths


def status(key: str) -> float:
    """The value of `key` in the status of this process, in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{key}:")[1].split()[0]) / 1024


def turn(way: str, paths: list[str]) -> None:
    """Predict, in a separate process, and print seconds and megabytes."""
    torch.set_num_threads(THREADS)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = status("VmRSS")
    from know import fast  # noqa: F401  compiled or loaded once per process
    from know.export import Request, predict_files
    from know.prediction import predict
    from know.trajectory import Trajectory

    trajectory = Trajectory.from_checkpoints(paths, FRACTIONS)
    if way == "memory":
        trajectory.states  # noqa: B018  read now
    started = time.perf_counter()
    if way == "memory":
        predict(trajectory, "known")
    else:
        predict_files(trajectory, Request("known"), WORK / "out")
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "memory": status("VmHWM") - before}))


def main() -> None:
    began, others = time.perf_counter(), used()
    shutil.rmtree(WORK, ignore_errors=True)
    paths = make()
    seconds: dict[str, list[float]] = {"files": [], "memory": []}
    memory: dict[str, float] = {}
    for repeat in range(REPEATS):
        for way in seconds:
            shutil.rmtree(WORK / "out", ignore_errors=True)
            command = [sys.executable, "-m", "benchmarks.speed.streaming", way, *map(str, paths)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"turn {repeat + 1}, {way}: {found['seconds']:.1f} s, {found['memory']:.0f} MB", file=sys.stderr)
            seconds[way].append(found["seconds"])
            memory[way] = max(memory.get(way, 0), found["memory"])
    size = paths[0].stat().st_size
    shutil.rmtree(WORK)
    about = machine()
    about["other_work"] = round((used() - others) / (time.perf_counter() - began) / os.cpu_count(), 3)
    write_json(
        HERE / "streaming.json",
        {
            "machine": about,
            "weights": sum(ROWS.values()) * COLUMNS,
            "gib": round(size / 2**30, 2),
            "repeats": REPEATS,
            "threads": THREADS,
            "seconds": of(seconds),
            "memory_mb": {way: round(value) for way, value in memory.items()},
            "required": REQUIRED,
        },
    )
    _table.write()


if __name__ == "__main__":
    turn(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else main()
