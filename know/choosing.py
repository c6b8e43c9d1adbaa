"""Choosing among predictions by a number that the user measures: `know predict --validate`.

theta_0 is always among the candidates. The best of several numbers is too high, as it was chosen for being high. A
function that takes a split of the validation data is therefore asked about a second split, for theta_0 and for what was
chosen alone. The gain there is the one to report, and the difference of the two gains estimates the optimism.
"""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from know.errors import KnowError, as_path
from know.export import Changes, Request, complete, refuse_inside, write_prediction
from know.files import listing, new_folder, sha256_file
from know.known import Models
from know.methods import get
from know.prediction import Overflow, predicted
from know.scripts import call, function_of, number_in
from know.trajectory import Trajectory

SCALES = (1.0, 0.5, 0.25)
"""Lengths of the step that are tried where none are given, the method's own first."""
CHOICE, CHECK = "choice", "check"
"""The splits of the validation data: by the first the choice is made, and the second sees its outcome."""


def candidates(
    requests: Sequence[Request], scales: Sequence[float] = SCALES, evaluations: int | None = None, checks: int = 0
) -> list[Request]:
    """theta_0, then every request at the first scale, then every request at the second, and so on.

    evaluations: how often the function may be called, `checks` included, which are no candidates; None: no limit.
    """
    asked = [replace(requests[0], scale=0.0)]
    asked += [replace(request, scale=scale) for scale in dict.fromkeys(scales) if scale for request in requests]
    asked = list(dict.fromkeys(asked))
    if len(asked) == 1:
        raise KnowError("there is nothing to choose: theta_0 is the only candidate")
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
        function(checkpoint path, split), where split, which has no default, is "choice" or "check" and names the part
        of the validation data.
    say: gets one line for each candidate.

    Where two numbers are equal, the shorter step is kept. A candidate that overflows is not judged. know_config.yml
    gets the entry "validate": the candidates with their numbers, the gain over theta_0, and, where the function takes
    a split, the gain on the second one. KnowError as for a prediction, for any of the requests and before the function
    is called, and if the function fails or answers what is no number.
    """
    out, _ = as_path("out", out), predicted(trajectory, dict(requests[0].roles))
    refuse_inside(trajectory, out)
    judge = _Judge(validate)
    asked, every = candidates(requests, scales, evaluations, judge.checks), candidates(requests, scales)
    for request in asked[1:]:
        request.try_first(trajectory)
    if len(asked) < len(every):
        say(f"{len(asked)} of {len(every)} candidates are judged; not: {', '.join(map(label, every[len(asked) :]))}")
    with new_folder(out) as folder:
        tried, best = [], None
        for request in asked:
            place = folder / f".candidate{len(tried)}"  # no hidden file is carried over from theta_0's folder
            place.mkdir()
            try:
                checkpoint, changes, models = write_prediction(trajectory, request, place)
            except Overflow:
                say(f"{label(request)}: overflows, not judged")
            else:
                value = judge(checkpoint, CHOICE)
                tried.append({"candidate": label(request), "value": value})
                say(f"{label(request)}: {value:g}")
                if request.scale == 0 and judge.splits:
                    theta_0 = judge(checkpoint, CHECK)
                found = _Found(request, changes, models, value, folder / checkpoint.relative_to(place))
                if best is None or found.better(best):
                    best = found
                    _replace(place, folder)
            shutil.rmtree(place)
        gain, kept = best.value - tried[0]["value"], best.request.scale != 0
        facts = {"function": judge.name, "sha256": judge.sha256, "tried": tried, "kept": label(best.request)}
        facts |= {"gain": gain, "said": f"none of {len(tried) - 1} was better than theta_0"}
        alike = False
        if kept and judge.splits:
            again = judge(best.checkpoint, CHECK)
            facts["gain_on_check"] = again - theta_0
            alike = (again, theta_0) == (best.value, tried[0]["value"])
        if kept:
            facts["said"] = _optimism(gain, facts.get("gain_on_check"), len(tried), alike=alike)
        say(f"kept: {facts['kept']}; {facts['said']}")
        config = complete(trajectory, best.request, folder, best.changes, best.models, validate=facts)
    return config, best.changes


def label(request: Request) -> str:
    """What a candidate is called in a line of text."""
    if request.scale == 0:
        return "theta_0"
    depth = f":{request.depth}" if get(request.method).depths else ""
    return f"{request.method}{depth} at scale {request.scale:g}"


def _optimism(gain: float, check: float | None, judged: int, *, alike: bool) -> str:
    """What is known of the optimism of a choice, as a sentence without its end. alike: both splits gave the same."""
    if check is None:
        return f"its gain over theta_0, {gain:+.4g}, is the best of {judged} and so too high: judge it on other data"
    if alike:
        return (
            f"its gain over theta_0 is {gain:+.4g} on both splits, to the last digit, so they seem to be the same data"
        )
    theirs = "as good" if check == 0 else "better"
    doubt = "" if check > 0 else f", which does not confirm it: theta_0 is {theirs} there"
    return (
        f"its gain over theta_0 is {gain:+.4g} on the split that chose it and {check:+.4g} on the other, which is the"
        f" one to report{doubt}; the difference, {gain - check:+.4g}, estimates what the choice cost in optimism, from"
        " one draw whose error is not known"
    )


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
        script, _, name = spec.rpartition(":")
        self.spec, self.function = spec, function_of(spec, "--validate")
        self.name, self.sha256 = f"{Path(script).name}:{name}", sha256_file(Path(script))
        self.splits = _takes_split(self.function)
        self.checks = 2 if self.splits else 0

    def __call__(self, checkpoint: Path, split: str) -> float:
        further = {"split": split} if self.splits else {}
        before = listing(checkpoint)
        answer = call(lambda: self.function(checkpoint, **further), self.spec, "--validate")
        if listing(checkpoint) != before:
            raise KnowError(f"--validate {self.spec!r}: the function changed the checkpoint that it should only read")
        value = number_in(answer)
        if value is None:
            kind = type(answer).__name__
            raise KnowError(f"--validate {self.spec!r}: the function must return one number; it returned a {kind}")
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise KnowError(f"--validate {self.spec!r}: the function answered no finite number for {checkpoint.name}")
        return float(value)


def _takes_split(function: Callable[..., float]) -> bool:
    """Whether a function has to be given a split; one with a default is the user's own business."""
    try:
        split = inspect.signature(function).parameters.get("split")
    except (TypeError, ValueError):  # functions that are not written in Python have none
        return False
    return split is not None and split.default is inspect.Parameter.empty


def _replace(place: Path, folder: Path) -> None:
    """Move what lies in `place` to `folder`, over what has the same name there."""
    for path in place.iterdir():
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
