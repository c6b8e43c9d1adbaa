"""The paper's claims as typed objects. They are data, in claims.yaml, and are read once, as `CLAIMS`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from benchmarks.settings import LENGTH, Policy

LineName = Literal["pretrained", "authors"]
"""The two KNOWNs: the networks that this project pretrained, and the authors' networks."""


class Data(BaseModel):
    """Part of claims.yaml: unknown keys are errors, and nothing can be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Side(Data):
    """One side of a contrast: an arm, at a share of the target images and a length S. The name alone will do."""

    arm: str
    share: float = 1.0
    length: int = LENGTH

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"arm": value} if isinstance(value, str) else value

    def __str__(self) -> str:
        share = "" if self.share == 1 else f" at {100 * self.share:g} % of the target"
        return self.arm + share + ("" if self.length == LENGTH else f", S = {self.length}")


class Contrast(Data):
    """The accuracy of one side minus that of the other, in points."""

    better: Side
    worse: Side

    def __str__(self) -> str:
        return f"{self.better} - {self.worse}"


class Every(Data):
    """One arm against each arm of a group, but for those of some lines."""

    arm: str
    group: str
    but: tuple[str, ...] = ()


class Claim(Data):
    """A sentence of the paper, and the contrasts that it is judged by: those listed, or those of `every`."""

    name: str
    asked: str
    contrasts: tuple[Contrast, ...] = ()
    every: Every | None = None
    suites: tuple[str, ...] | None = None
    """The suites that it is judged in; None means the core suites."""
    everywhere: bool = False
    controls_of: LineName | None = None
    presupposes: Contrast | None = None
    ceiling: Contrast | None = None


class Primary(Data):
    """The contrasts that Holm's correction is over, at one rate policy."""

    policy: Policy
    contrasts: tuple[Contrast, ...]


class Finalist(Data):
    """An arm that may become a part of the library, and the arm of equal compute that it has to beat."""

    arm: str
    matched: str

    @property
    def contrasts(self) -> tuple[Contrast, Contrast]:
        return Contrast(better=self.arm, worse="naive"), Contrast(better=self.arm, worse=self.matched)


class Ships(Data):
    """In how many informative core cells, of how many networks and pairs of datasets, a finalist has to hold; seen: the
    dataset whose test images have chosen the finalists, which as a target does not count.
    """

    cells: int
    networks: int
    pairs: int
    seen: str


class Line(Data):
    """The arms of one of the two KNOWNs: the start of their names, and the deepest of them."""

    label: str
    arm: str
    deepest: str


class Control(Data):
    """What a control shares with KNOWN, and the arm of the control by line."""

    text: str
    arms: dict[LineName, str]


class Reported(Data):
    """An accuracy that the paper reports, in percent, for each of these arms."""

    arms: tuple[str, ...]
    accuracy: float
    share: float = 1.0
    length: int = LENGTH


class Paper(Data):
    """The paper's numbers."""

    seconds_per_weight: float
    seconds: float
    accuracies: tuple[Reported, ...]


class Least(Data):
    """How many networks and pairs of datasets the informative core cells have to be of."""

    networks: int
    pairs: int


class Claims(Data):
    """Everything in claims.yaml, where a comment explains each key."""

    core: tuple[str, ...]
    margin: float
    margin_of_gap: float
    significance: float
    cheap: float
    cost_of: tuple[str, ...]
    still: float
    least: Least
    shown_by_place: int
    primary: Primary
    finalists: tuple[Finalist, ...]
    ships: Ships
    paper: Paper
    lines: dict[LineName, Line]
    controls: tuple[Control, ...]
    claims: tuple[Claim, ...]

    @property
    def families(self) -> tuple[tuple[Contrast, ...], ...]:
        """The primary contrasts, and those of the finalists: Holm's correction is over each of the two."""
        return self.primary.contrasts, tuple(each for one in self.finalists for each in one.contrasts)

    def paper_gain(self, contrast: Contrast) -> float | None:
        """The same difference of the paper's numbers, in points; None where the paper lacks one of them."""
        accuracies = {
            Side(arm=arm, share=row.share, length=row.length): row.accuracy
            for row in self.paper.accuracies
            for arm in row.arms
        }
        better, worse = accuracies.get(contrast.better), accuracies.get(contrast.worse)
        return None if better is None or worse is None else better - worse


CLAIMS = Claims.model_validate(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")))
