"""The tables of an inspection: they split the steps of methods into parts and describe trajectories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmarks.arms import Asked, Line, lines
from benchmarks.settings import Arms, Cell
from know.inspection import (
    MOVEMENT,
    PARTS,
    PLACEBO,
    Parts,
    beside_placebo,
    movement,
    steps,
    write_table,
)
from know.known import Models
from know.prediction import Overflow
from know.seeds import stream
from know.trajectory import Trajectory

PLACE = ["source", "network", "track", "rate", "length", "trajectory"]
STEPS = [*PLACE, "predictor", "depth", *(part for part in PARTS if part not in ("tensor", "shrink_by", "linear_by"))]


def inspect_suite(
    cells: Iterable[Cell], trajectories: list[str], arms: Arms, work: Path, known: Mapping[int, Path]
) -> None:
    """Write the tables of a suite, `<work>/inspection/{steps,movement,placebo}.csv`, by role.

    They cover every method of the suite's arms on every evaluated trajectory on which its answer is finite; where it
    has a depth, at depths 1, 2, 3 and those of its arms. What is random in a method is drawn here by itself, and not as
    in the arm. known: folders of the networks by S.
    """
    every, taken, moved, beside = lines(arms), [], [], []
    # several targets or shares of one source have the same trajectories
    places = sorted({(cell.origin, cell.track, cell.length) for cell in cells})
    evaluated = [t for t in trajectories if not t.startswith("p")]
    bar = tqdm(total=len(places) * len(evaluated) * len(every), desc="inspection", disable=None)
    for origin, track, length in places:
        models = Models(known[length])
        for trajectory in evaluated:
            seen = Trajectory.load(work / "trajectories" / origin.slug / trajectory / track).last(length)
            facts = (origin.source, origin.network, track, origin.ratio, length, trajectory)
            place = dict(zip(PLACE, facts, strict=True))
            moved += [{**place, **row} for row in movement(seen)]
            beside += [{**place, **row} for row in beside_placebo(seen, seen.placebo)]
            for line in every:
                bar.update()
                for depth in sorted({1, 2, 3, *line.depths}) if line.entry.depths else (0,):
                    taken += [
                        {**place, "predictor": line.name, "depth": depth, **asdict(parts)}
                        for parts in _steps_of(line, seen, depth, models)
                        if not parts.tensor
                    ]
    out = work / "inspection"
    write_table(out / "steps.csv", taken, STEPS)
    write_table(out / "movement.csv", moved, [*PLACE, *MOVEMENT])
    write_table(out / "placebo.csv", beside, [*PLACE, *PLACEBO])


def _steps_of(line: Line, trajectory: Trajectory, depth: int, models: Models) -> list[Parts]:
    """The parts of a line's step; none where the line changes no weights, is not available, or overflows."""
    if line.entry.missing(line.options, len(trajectory.paths)):
        return []
    try:
        start = line.start(Asked(trajectory, models, max(1, depth), stream("inspection", line.name), "carry"))
    except Overflow:
        return []
    return [] if start.weights is trajectory.theta_0 else steps(trajectory, start.weights)
