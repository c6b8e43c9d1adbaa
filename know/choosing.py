"""Choosing among predictions by a number that the user measures: `know predict --validate`.

theta_0 is always among the candidates. The best of several numbers is too high, as it was chosen for being high. A
function that takes a split of the validation data is therefore asked about a second split, for theta_0 and for what was
chosen alone; the difference of the two gains is what the choice cost in optimism.
"""

from __future__ import annotations

import inspect
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from know.errors import KnowError, as_path
from know.export import Changes, Request, complete, write_prediction
from know.files import new_folder, sha256_file
from know.known import Models
from know.prediction import predicted
from know.scripts import call, function_of
from know.trajectory import Trajectory

SCALES = (0.25, 0.5, 1.0)
"""Lengths of the step that are tried where none are given."""
CHOICE, CHECK = "choice", "check"
"""The splits of the validation data: by the first the choice is made, and the second sees its outcome."""


def candidates(
    requests: Sequence[Request], scales: Sequence[float] = SCALES, evaluations: int | None = None, checks: int = 0
) -> list[Request]:
    """theta_0, then every request at the first scale, then every request at the second, and so on.

    evaluations: how many are asked about at most, `checks` included, which are no candidates; None: no limit.
    """
    asked = [replace(requests[0], scale=0.0)]
    asked += [replace(request, scale=scale) for scale in dict.fromkeys(scales) if scale for request in requests]
    asked = list(dict.fromkeys(asked))
    if evaluations is None:
        return asked
    if evaluations < 2 + checks:
        beside = f" and {checks} for the second split" if checks else ""
        raise KnowError(f"--evaluations {evaluations}: theta_0 and one prediction need 2{beside}")
    return asked[: evaluations - checks]


def choose_files(
    trajectory: Trajectory,
    requests: Sequence[Request],
    out: Path | str,
    validate: str,
    *,
    scales: Sequence[float] = SCALES,
    evaluations: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], Changes]:
    """As `know.export.predict_files`, of the candidate with the highest number; theta_0 where none is better.

    requests: at least one. scales, evaluations: see `candidates`.
    validate: "SCRIPT.py:function": function(checkpoint path) -> number, the higher the better; or
        function(checkpoint path, split), where split is "choice" or "check" and names the part of the validation data.
    say: gets one line for each candidate.

    Where two numbers are equal, the shorter step is kept. know_config.yml gets the entry "validate": the candidates
    with their numbers, the gain over theta_0, and, where the function takes a split, the gain on the second one.
    KnowError as for a prediction, and if the function fails or answers what is no number.
    """
    out, _ = as_path("out", out), predicted(trajectory, dict(requests[0].roles))
    judge = _Judge(validate)
    asked, every = candidates(requests, scales, evaluations, judge.checks), candidates(requests, scales)
    if len(asked) < len(every):
        say(f"{len(asked)} of {len(every)} candidates are judged")
    with new_folder(out) as folder:
        tried, best = [], None
        for request in asked:
            place = folder / f"candidate{len(tried)}"
            place.mkdir()
            checkpoint, changes, models = write_prediction(trajectory, request, place)
            value = judge(checkpoint, CHOICE)
            tried.append({"method": request.method, "depth": request.depth, "scale": request.scale, "value": value})
            say(f"{label(request)}: {value:g}")
            if request.scale == 0:
                theta_0 = judge(checkpoint, CHECK) if judge.splits else None
            found = _Found(request, changes, models, value, folder / checkpoint.relative_to(place))
            if best is None or found.better(best):
                best = found
                _replace(place, folder)
            shutil.rmtree(place)
        facts = {"function": judge.name, "sha256": judge.sha256, "tried": tried, "gain": best.value - tried[0]["value"]}
        if judge.splits:
            facts["gain_on_check"] = judge(best.checkpoint, CHECK) - theta_0
        facts["said"] = optimism(facts)
        say(f"kept: {label(best.request)}; {facts['said']}")
        config = complete(trajectory, best.request, folder, best.changes, best.models, validate=facts)
    return config, best.changes


def label(request: Request) -> str:
    """What a candidate is called in a line of text."""
    return f"{request.method}:{request.depth}, scale {request.scale:g}" if request.scale else "theta_0"


def optimism(facts: dict[str, Any]) -> str:
    """What is known of the optimism of a choice, as a sentence without its end."""
    gain = f"gain over theta_0 {facts['gain']:+.4g}"
    if "gain_on_check" not in facts:
        return f"{gain}, which is too high, as it is the best of {len(facts['tried'])}: judge it on other data"
    check = facts["gain_on_check"]
    too_high = facts["gain"] - check
    return f"{gain} on the split that chose it, {check:+.4g} on the other: the choice cost {too_high:.4g} in optimism"


@dataclass(frozen=True)
class _Found:
    """A candidate that was judged."""

    request: Request
    changes: Changes
    models: Models
    value: float
    checkpoint: Path
    """Where it lies if it is kept."""

    def better(self, other: _Found) -> bool:
        return (self.value, -(self.changes.step or 0.0)) > (other.value, -(other.changes.step or 0.0))


class _Judge:
    """The user's function."""

    def __init__(self, spec: str):
        self.spec, self.function = spec, function_of(spec, "--validate")
        script, _, name = spec.rpartition(":")
        self.name, self.sha256 = f"{Path(script).name}:{name}", sha256_file(Path(script))
        self.splits = _takes_split(self.function)
        self.checks = 2 if self.splits else 0

    def __call__(self, checkpoint: Path, split: str) -> float:
        further = {"split": split} if self.splits else {}
        value = call(lambda: float(self.function(checkpoint, **further)), self.spec, "--validate")
        if not math.isfinite(value):
            raise KnowError(f"--validate {self.spec!r}: the function answered {value}, which is no number to compare")
        return value


def _takes_split(function: Callable[..., float]) -> bool:
    try:
        return "split" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # functions that are not written in Python have none
        return False


def _replace(place: Path, folder: Path) -> None:
    """Move what lies in `place` to `folder`, over what has the same name there."""
    for path in place.iterdir():
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
