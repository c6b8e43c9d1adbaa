"""What a comparison showed, in sentences that follow from its rows by rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from know.statistics import Interval

THETA_0 = "theta_0"
POLICIES = ("today", "tuned")


@dataclass(frozen=True)
class Row:
    """One candidate under one policy. difference, low, high: to theta_0, paired over seeds. on_edge: whether the best
    of the rates that were tried is the first or the last of them. failed, lost_pilots: fine-tunes without a score.
    same: whether all seeds gave the same score. beside: of a prediction at tuned rates, the difference to each
    checkpoint that takes part beside theta_0, and of KNOWN to its control, by name.
    """

    candidate: str
    policy: str
    learning_rate: float
    on_edge: bool
    score: float
    difference: float
    low: float
    high: float
    n: int
    failed: int
    kind: str = "prediction"
    lost_pilots: int = 0
    same: bool = False
    beside: Mapping[str, Interval] = field(default_factory=dict)


def verdict(rows: Sequence[Row]) -> str:
    """What can be said of these rows, by rule. Intervals hold for all differences of a rate policy together.

    A lower limit above 0 at tuned rates is a gain that is left; predictions come first, then controls and checkpoints
    of the user. One at today's rate alone is named with what is seen at tuned rates, and as a gain that another rate
    gives too only where the two intervals lie apart. With neither, the largest upper limit at tuned rates is what the
    runs are compatible with, unless no score depends on where fine-tuning starts, which is said instead. Then come
    losses; whether a prediction scores more than its control and than the checkpoints beside theta_0; and what makes
    all of it doubtful: rates on an edge, lost runs, seeds that change nothing, or no difference. Candidates of which
    nothing can be said are named before all of it.
    """
    today, tuned = ({r.candidate: r for r in rows if r.policy == p and r.candidate != THETA_0} for p in POLICIES)
    usable = [row for row in tuned.values() if math.isfinite(row.low)]
    if not usable:
        return "Nothing can be said: fewer than two seeds have a score of theta_0 and of a candidate."
    silent = [name for name, row in tuned.items() if row not in usable]
    left_out = [f"Nothing can be said of {', '.join(silent)}: fewer than two seeds have a score."] if silent else []
    edges = sorted({row.candidate for row in rows if row.on_edge})
    best_rate = "at the best of the rates tried" if edges else "where each has its own best rate"
    said, gains = [], [row for row in usable if row.low > 0]
    own, others = ([r for r in gains if (r.kind == "prediction") == mine] for mine in (True, False))
    if own:
        said.append(f"A gain is left {best_rate}: over theta_0, {_listed(own)}.")
    if others:
        without = "What is no prediction gains too" if own else "No prediction is seen to gain, and others are"
        said.append(f"{without}: over theta_0, {_listed(others)}.")
    for row in (
        row for name, row in today.items() if row.low > 0 and tuned[name] in usable and tuned[name] not in gains
    ):
        left = tuned[row.candidate]
        seen = "another rate gives that too, since" if left.high < row.low else "no gain is seen"
        seen += f" at tuned rates{'' if left.high < row.low else ', where'} the difference is {_interval(left)}"
        more = f"{row.candidate} by {_interval(row)}"
        said.append(f"At the rate of today, {row.learning_rate:g}, more than theta_0: {more}; {seen}.")
    losses = [row for row in usable if row.high < 0]
    if len(losses) == len(usable):
        best = max(usable, key=lambda row: row.difference)
        every = "All other" if left_out else "All"
        said.append(
            f"{every} candidates score less than theta_0 at tuned rates, the best of them by {_interval(best)}."
        )
    else:
        if not said and all(row.low == row.high == 0 for row in usable):
            said.append("No score depends on the weights that fine-tuning starts at.")
        elif not said:
            most = _rounded_up(max(row.high for row in usable))
            said.append(f"No gain of more than {most:g} is compatible with these runs at tuned rates.")
        if losses:
            said.append(f"Less than theta_0: {_listed(losses)}.")
    said += _against_others(usable)
    return " ".join([*left_out, *said, *_doubts(rows, edges)])


def _against_others(usable: Sequence[Row]) -> Iterator[str]:
    """For each control and each checkpoint beside theta_0, whether a prediction scores more than it."""
    for name in dict.fromkeys(name for row in usable for name in row.beside):
        beside = {row.candidate: row.beside[name] for row in usable if name in row.beside}
        beside = {candidate: one for candidate, one in beside.items() if math.isfinite(one.low)}
        if more := {candidate: one for candidate, one in beside.items() if one.low > 0}:
            yield f"More than {name}: {' and '.join(f'{key} by {_interval(one)}' for key, one in more.items())}."
        elif beside:
            best = max(beside, key=lambda candidate: beside[candidate].mean)
            yield f"No prediction is seen to score more than {name}; the most is {best}, by {_interval(beside[best])}."


def _doubts(rows: Sequence[Row], edges: Sequence[str]) -> Iterator[str]:
    """What a reader has to know before believing the sentences above."""
    if edges:
        yield (
            f"The best rate of {', '.join(edges)} lies on an edge of those tried, so the rate may be the cause of a"
            " difference: give rates beyond it."
        )
    failed = {
        name: max(row.failed for row in rows if row.candidate == name) for name in {row.candidate for row in rows}
    }
    lost = {row.candidate: (row.lost_pilots, failed[row.candidate]) for row in rows if row.policy == "tuned"}
    lost = {name: counts for name, counts in lost.items() if any(counts)}
    if lost:
        shown = ", ".join(f"{name} ({pilots} in the search, {runs} after it)" for name, (pilots, runs) in lost.items())
        yield (
            f"Fine-tunes without a score: {shown}. In the search each takes its rate from the candidate; after it each"
            " is left out of a difference, which favours a candidate that fails where it would do badly."
        )
    if same := sorted({row.candidate for row in rows if row.same}):
        yield (
            f"All seeds gave {', '.join(same)} the same score: if the task does not use its seed, these are one run,"
            " and the intervals say nothing."
        )
    differences = [(row, THETA_0, row) for row in rows if row.candidate != THETA_0 and not row.same]
    differences += [(row, other, one) for row, *_ in differences for other, one in row.beside.items()]
    narrow: dict[str, set[str]] = {}
    for row, other, one in differences:
        if row.n > 1 and math.isclose(one.low, one.high):
            narrow.setdefault(other, set()).add(row.candidate)
    for other, names in narrow.items():
        yield (
            f"All seeds gave {', '.join(sorted(names))} the same difference to {other}, as scores with few possible"
            " values do, so its interval has no width and says nothing: give more seeds."
        )


def _listed(rows: Iterable[Row]) -> str:
    return " and ".join(f"{row.candidate} by {_interval(row)}" for row in rows)


def _rounded_up(value: float) -> float:
    """The value with two significant digits, and not below it."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")


def _interval(one: Row | Interval) -> str:
    mean = one.difference if isinstance(one, Row) else one.mean
    return f"{mean:.3g} [{one.low:.3g}, {one.high:.3g}]"
