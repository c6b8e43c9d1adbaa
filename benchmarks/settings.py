"""The settings of a suite, strictly validated. They are also the arguments of the stages (a `Recipe` for training).

Imports neither torch nor data, so that the workflow reads a suite at once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.references import REFERENCES
from know.errors import KnowError, unknown
from know.keras import LENGTH

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Track = Literal["overflow", "retrodiction"]
Normalisation = Literal["carry", "reset", "recalibrate"]
Policy = Literal["short", "paper", "tuned"]
"""A rate policy: all arms at the paper's learning rate on the suite's short schedule, at that rate for as long as in
the paper, or each arm at its own tuned rate on the short schedule."""
RATIO = 0.5
"""r of the paper's main experiments; their S is LENGTH. Names of cells mention r and S only where they differ."""
DEPTHS = (1, 2, 3)
"""How many predictions in a row the paper makes, and the figure of a trajectory's plane shows."""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recipe(Settings):
    """The settings of one training run. `steps`, where given, replaces `epochs`."""

    epochs: Positive
    learning_rate: Rate
    steps: Positive | None = None
    batch_size: Positive = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    augment: Literal["none", "shift", "affine"] = "none"
    """How every image is changed in every epoch. `shift` moves it by up to 1/8 of the side, and mirrors it where a
    mirrored image has the same class; `affine` is the authors' script: rotation, shift and zoom."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of both passes in training (torch's autocast); weights and evaluation are always float32."""
    compile: bool = False
    """Whether the network is compiled (torch.compile). This makes large networks faster and does not pay off in short
    training; sums may be computed in another order."""
    head_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs of a first phase that trains only the normalisation layers and the head."""
    head_learning_rate: Rate = 1e-3


class Forgetting(Settings):
    """Structured forgetting (paper, section 3): S snapshots, trained on the fractions 1, r, r^2, ... of D0."""

    d0: Annotated[float, Field(gt=0, le=0.5)] = 0.5
    """Share of the source that is D0. At 0.5 the oracle with twice the data is trained on the whole source; at 0.125
    there are also oracles with four and eight times the data (`oracle_x4`, `oracle_x8`)."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    length: Annotated[int, Field(ge=2)] = 5
    smallest: Positive = 64
    """The fewest images that the smallest subset may have."""
    step: Recipe
    carry_optimizer: bool = True
    """Whether the optimiser keeps its state from one subset to the next, as in the released script."""


class MetaTraining(Settings):
    """The meta-set (small trajectories) and the training of KNOWN on its windows."""

    datasets: list[str] = Field(min_length=1)
    networks: list[str] = Field(min_length=1)
    trajectories: Annotated[int, Field(ge=2)]
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of trajectories that decide when training stops. As many others serve to report the errors."""
    shards: Positive = 2
    together: Positive = 1
    """How many trajectories are trained at once, stacked, which suits a GPU. They share all that is drawn but their
    subsets, learning rates and initialisations."""
    images: Positive
    """The fewest images of D0, the largest subset of a trajectory; the most are all that the dataset has."""
    smallest: Positive = 32
    """The fewest images of the smallest of the seven subsets; this bounds r from below."""
    pretraining_epochs: tuple[Positive, Positive]
    pretraining_images: Positive = 200_000
    """Training of theta_0 shows at most about this many images, one epoch at least."""
    forgetting_epochs: tuple[Positive, Positive] = (1, 3)
    step_updates: tuple[Positive, Positive] = (16, 600)
    """Number of updates in the first forgetting step, as far as batch sizes within their bounds allow."""
    ratio: tuple[Share, Share] = (0.3, 0.9)
    learning_rate: tuple[Rate, Rate] = (1e-5, 4e-3)
    batch_size: Positive = 32
    """Smallest batch size; the largest is the size of the smallest subset (paper: U(32, r^6 |D0|))."""
    carry_optimizer: bool = True
    windows: Positive = 4096
    """At most this many windows per role from one trajectory."""
    updates: Positive
    window_batch: Positive = 1024
    optimizer_rate: Rate = 1e-3
    patience: Positive = 10
    """Evaluations without improvement after which training of a role stops."""
    evaluations: Positive = 40
    loss: Literal["absolute", "relative"] = "absolute"
    """absolute: the mean |error| of all windows (paper), which the trajectories with the longest steps rule. relative:
    the mean |error| of each trajectory is divided by that of predicting no change there, and all count alike."""
    bias_penalty: Annotated[float, Field(ge=0)] = 0.1
    """Factor of the L1 penalty on the biases of the plain linear layers; 0.1 is published, 0 turns it off."""
    beside: str | None = None
    """A group of shipped networks whose errors on the same held-out trajectories are also reported."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> MetaTraining:
        if not 1 <= round(self.held_out * self.trajectories) < self.trajectories / 2:
            raise ValueError(f"held_out {self.held_out} of {self.trajectories} trajectories leaves one part empty")
        for name in ("pretraining_epochs", "forgetting_epochs", "step_updates", "ratio", "learning_rate"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} goes from {low} down to {high}; give the lower bound first")
        return self


@dataclass(frozen=True)
class Variant:
    """Another meta-training on the same meta-set, which says what a choice is worth."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings (`MetaTraining`) that differ from those of what ships."""
    share: float = 1.0
    """Share of the training trajectories; fewer of each network and over the same range of r."""
    network: str | None = None
    """A kind of network that is left out of training and selection, and tested on."""


def variants(settings: MetaTraining) -> dict[str, Variant]:
    """Every variant by name: losses and penalties, a learning curve, and each kind of network left out."""
    made = {
        f"{loss}-{penalty:g}": Variant({"loss": loss, "bias_penalty": penalty})
        for loss in ("absolute", "relative")
        for penalty in (0.1, 0.0)
    }
    made |= {f"share-{share:g}": Variant(share=share) for share in (0.125, 0.25, 0.5)}
    return made | {f"without-{network}": Variant(network=network) for network in settings.networks}


class Group(Settings):
    """One group of networks that ship with the package."""

    without: list[str] = []
    """Families of datasets that its meta-training leaves out, so that the group can be evaluated on them."""
    lengths: list[Annotated[int, Field(ge=2, le=6)]] = Field([LENGTH], min_length=1)
    """Values of S for which networks are trained."""


class PaperPolicy(Settings):
    """Fine-tuning as long as in the paper, which is affordable for some arms only."""

    arms: list[str] = Field(min_length=1)
    """Names of the arms, as in the tables."""
    epochs: Positive = 100
    head_epochs: Annotated[int, Field(ge=0)] = 10


class Transfer(Settings):
    """Fine-tuning on the target: the same function and the same search for every arm."""

    recipe: Recipe
    images: Positive
    """Number of target-training images at share 1."""
    validation: Positive
    """Number of other target-training images, disjoint from `images`; only they decide the learning rate."""
    shares: list[Share] = [1.0]
    fine_tunes: Positive = 1
    """Fine-tunes of every evaluated trajectory at every policy, which differ in images, head and batches."""
    pilot_fine_tunes: Positive = 1
    """The same of every pilot trajectory at every rate of the search."""
    paper: PaperPolicy | None = None
    """Arms that are also fine-tuned at the policy `paper`; without it there is none."""
    grid: list[Rate] = Field(min_length=6)
    """Learning rates of the search: each is twice the one before, and the published one is among them."""
    extensions: Annotated[int, Field(ge=0)] = 2
    """How many rates may be added, for all arms, while some arm's best rate lies on an edge of the grid."""
    together: Positive = 1
    """How many fine-tunes are trained at once, stacked, which suits small networks on a GPU. Only rounding differs."""
    normalisation: Normalisation = "carry"
    """Normalisation of all arms but those that study it. `carry` keeps parameters and running statistics; `reset` takes
    those of a fresh network; `recalibrate` keeps the parameters and measures the statistics on the target images."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Transfer:
        ratios = [b / a for a, b in itertools.pairwise(self.grid)]
        if any(abs(ratio - 2) > 1e-6 for ratio in ratios):
            raise ValueError("grid must rise by factors of 2")
        if self.recipe.learning_rate not in self.grid:
            raise ValueError(f"grid must contain recipe.learning_rate {self.recipe.learning_rate:g}")
        return self

    def policies(self, arm: str) -> list[Policy]:
        """The rate policies at which an arm is evaluated."""
        return ["short", *(["paper"] if self.paper and arm in self.paper.arms else []), "tuned"]

    def at(self, policy: Policy) -> Transfer:
        """The settings with the recipe of that policy."""
        if policy != "paper":
            return self
        longer = {"epochs": self.paper.epochs, "head_epochs": self.paper.head_epochs}
        return self.model_copy(update={"recipe": self.recipe.model_copy(update=longer)})


class LineOfArms(Settings):
    """One line of arms: a method, or an arm of benchmarks/arms.py, with its options, at one or more depths."""

    method: str | None = None
    """Name of a file in know/methods/, or of an arm; the default is the name of the entry."""
    depths: list[Positive] | None = None
    """The default is the depths that the method or arm declares."""
    options: dict[str, float | int | str | bool] = {}


class Arms(Settings):
    """Which arms are in the tables.

    `methods: all` takes every file in know/methods/ and every arm of benchmarks/arms.py, with their variants, except
    the methods that need files from outside the project (the authors' released weights), so that the tables are the
    same everywhere. An entry that names such a method adds it to the tables, as "not available" where the files are
    missing.
    """

    references: list[str]
    methods: Literal["all"] | dict[str, LineOfArms | None] = "all"
    also: dict[str, LineOfArms | None] = {}
    """Entries in addition to `methods`, such as the released weights in addition to all methods."""

    @property
    def named(self) -> dict[str, LineOfArms | None]:
        """The entries that are given by name."""
        return {**({} if self.methods == "all" else self.methods), **self.also}

    @pydantic.model_validator(mode="after")
    def _check(self) -> Arms:
        if self.methods != "all" and (twice := self.methods.keys() & self.also.keys()):
            raise ValueError(f"{', '.join(sorted(twice))} stands both in methods and in also")
        for name in self.references:
            if name not in REFERENCES:
                raise KnowError(f"arms.references: {unknown('reference', name, REFERENCES)}")
        if "naive" not in self.references:
            raise ValueError("references must contain naive: all differences are paired with it")
        return self


class Skill(Settings):
    """On which trajectories the networks that ship are asked where the truth exists (benchmarks/skill.py)."""

    suite: str
    """The suite whose training of theta_{-1} and forgetting steps the trajectories have."""
    group: str
    """The group of networks that is asked; its meta-training left the source out."""
    source: str
    networks: list[str] = Field(min_length=1)
    trajectories: Annotated[int, Field(ge=2)]
    arms: Arms


class Shipped(Settings):
    """How the networks that ship are made: one meta-set, and groups trained on it (benchmarks/metatraining.yaml), one
    of which is then asked where the truth exists.
    """

    metatraining: MetaTraining
    groups: dict[str, Group]
    skill: Skill

    @pydantic.model_validator(mode="after")
    def _check(self) -> Shipped:
        known = {family(name) for name in self.metatraining.datasets}
        for name, group in self.groups.items():
            if lacking := set(group.without) - known:
                raise ValueError(f"groups.{name}.without: {', '.join(sorted(lacking))} is not in the meta-set anyway")
        if family(self.skill.source) not in self.groups[self.skill.group].without:
            raise ValueError(f"skill.source: group {self.skill.group} was meta-trained on {self.skill.source}")
        return self


class Pair(Settings):
    """A source and a target dataset, with the networks that are trained on them."""

    source: str
    target: str
    networks: list[str] = Field(min_length=1)
    tracks: list[Track] = ["overflow"]
    ratios: list[Annotated[float, Field(gt=0, lt=1)]] | None = None
    """Values of r, for an ablation; the default is forgetting.ratio."""
    lengths: list[Annotated[int, Field(ge=2, le=6)]] | None = None
    """Values of S, for an ablation; the default is forgetting.length. A shorter history is the end of a longer one."""


def family(dataset: str) -> str:
    """The family of a dataset, whose members count as the same data: all parts of CIFAR-10 and CIFAR-100 are one.

    So are images resized to any side.
    """
    name = plain_name(dataset)
    return "cifar" if name.startswith("cifar") else name


def plain_name(dataset: str) -> str:
    """The name of a dataset without a choice of its classes, or another side of its images."""
    return re.split("[@:]", dataset)[0]


@dataclass(frozen=True, order=True)
class Origin:
    """What a set of trajectories depends on. Every cell with this source, network and r uses the same trajectories."""

    source: str
    network: str
    ratio: float = RATIO

    @property
    def slug(self) -> str:
        return _slug(self.source, self.network, *([] if self.ratio == RATIO else [f"r{self.ratio:g}"]))


@dataclass(frozen=True, order=True)
class Cell:
    """One comparison, in which every arm is run on every trajectory."""

    track: Track
    source: str
    target: str
    network: str
    share: float
    ratio: float = RATIO
    length: int = LENGTH

    @property
    def slug(self) -> str:
        parts = [self.track, self.source, self.target, self.network, f"{100 * self.share:g}"]
        parts += [] if self.ratio == RATIO else [f"r{self.ratio:g}"]
        return _slug(*parts, *([] if self.length == LENGTH else [f"s{self.length}"]))

    @property
    def origin(self) -> Origin:
        return Origin(self.source, self.network, self.ratio)


def _slug(*parts: str) -> str:
    """A name that is safe in paths and in the workflow's wildcards. A side (@32) and a class (:32) have other names."""
    return ".".join(re.sub(r"[^\w+-]+", "_", part.replace("@", "-")) for part in parts)
