"""A suite: its cells and origins, read from a YAML file. Imports neither torch nor data."""

from __future__ import annotations

import difflib
import itertools
import typing
from pathlib import Path

import pydantic
import yaml
from pydantic import Field

from benchmarks.arms import ARMS
from benchmarks.references import REFERENCES
from benchmarks.settings import (
    LENGTH,
    RATIO,
    Arms,
    Cell,
    Forgetting,
    LineOfArms,
    MetaTraining,
    Origin,
    Pair,
    Positive,
    Recipe,
    Settings,
    Shipped,
    Track,
    Transfer,
    family,
)
from know.errors import KnowError, unknown
from know.files import PACKAGE, PRETRAINED, read_json

SUITES = Path("benchmarks/suites")
SHIPPED = Path("benchmarks/metatraining.yaml")
WORK = Path("work")
RESULTS = Path("results")


class Suite(Settings):
    """A whole benchmark run; see the files in benchmarks/suites/."""

    title: str
    evidence: bool
    """False for suites that only test the code; all their tables say so."""
    remarks: list[str] = Field([])
    """Sentences printed above the tables, such as which data are in-distribution."""
    pairs: list[Pair] = Field(min_length=1)
    trajectories: Positive
    pilots: Positive
    pretraining: Recipe
    forgetting: Forgetting
    metatraining: MetaTraining | None = None
    """The suite's own KNOWN. A suite gives either this or `known`."""
    known: str | None = None
    """A group of networks that ship with the package (a folder in know/pretrained/)."""
    transfer: Transfer
    arms: Arms
    first_trajectory: int = Field(0, ge=0)
    """The number of the first evaluated trajectory; seeds are made from numbers. A comparison that follows another one
    begins beyond those, so that no test result of its trajectories is known beforehand."""
    processes: Positive = 1
    """How many processes share one origin's trajectories or one cell's fine-tunes; this changes no result."""
    device: str = "cpu"
    """The torch device on which networks are trained, such as cuda. `--device` of a command overrides it."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Suite:
        if self.trajectories < 2:
            raise ValueError("trajectories: an interval over trajectories needs at least 2")
        if self.forgetting.carry_optimizer and self.pretraining.optimizer != self.forgetting.step.optimizer:
            raise ValueError("forgetting.carry_optimizer needs the same optimizer in pretraining and forgetting.step")
        if self.pretraining.steps is not None:
            raise ValueError("pretraining is given in epochs: the oracle has the same epochs, or the same steps")
        if (self.metatraining is None) == (self.known is None):
            raise ValueError("give either metatraining (the suite's own) or known (a group that ships)")
        if self.evidence and (seen := {family(d) for d in self.evaluated} & {family(d) for d in self.learnt_from}):
            raise ValueError(f"evidence needs a KNOWN that was not meta-trained on {', '.join(sorted(seen))}")
        for name in self.arms.references:
            if (factor := REFERENCES[name].factor) * self.forgetting.d0 > 1:
                raise ValueError(f"arms.references: {name} needs a forgetting.d0 of at most {1 / factor:g}")
        if self.forgetting.d0 != 0.5 and any("retrodiction" in pair.tracks for pair in self.pairs):
            raise ValueError("forgetting.d0 is 0.5 on the retrodiction track: theta_{-1} has twice the data of theta_0")
        if self.lengths[-1] > 6:
            raise ValueError("forgetting.length is at most 6: the meta-set has 7 snapshots, one of them the target")
        return self

    @property
    def origins(self) -> list[Origin]:
        return sorted({cell.origin for cell in self.cells})

    @property
    def cells(self) -> list[Cell]:
        cells = {
            Cell(track, pair.source, pair.target, network, share, ratio, length)
            for pair in self.pairs
            for track, network, share, ratio, length in itertools.product(
                pair.tracks,
                pair.networks,
                self.transfer.shares,
                pair.ratios or [self.forgetting.ratio],
                pair.lengths or [self.forgetting.length],
            )
        }
        return sorted(cells)

    @property
    def pictured(self) -> Cell:
        """The cell of which the landscape is drawn: the first with the paper's r and S, or the first of all."""
        usual = (cell for cell in self.cells if (cell.ratio, cell.length) == (RATIO, LENGTH))
        return next(usual, self.cells[0])

    @property
    def datasets(self) -> list[str]:
        return sorted(self.evaluated | set(self.metatraining.datasets if self.metatraining else ()))

    @property
    def evaluated(self) -> set[str]:
        """All source and target datasets."""
        return {name for pair in self.pairs for name in (pair.source, pair.target)}

    @property
    def learnt_from(self) -> list[str]:
        """Datasets on which any KNOWN of the suite was meta-trained: its own, and shipped ones that its arms use."""
        lines = [(name, entry or LineOfArms()) for name, entry in self.arms.named.items()]
        groups = {str(e.options.get("group", "general")) for name, e in lines if (e.method or name) == "shipped"}
        groups |= {self.known} if self.known else set()
        datasets = {d for group in groups for length in self.lengths for d in read_json(_facts(group, length))["data"]}
        return sorted(datasets | set(self.metatraining.datasets if self.metatraining else ()))

    def known_folder(self, work: Path, length: int) -> Path:
        """The folder of the networks for histories of S = `length`."""
        return _facts(self.known, length).parent if self.known else work / "known" / str(length)

    def tracks(self, origin: Origin) -> list[Track]:
        return sorted({cell.track for cell in self.cells if cell.origin == origin})

    @property
    def lengths(self) -> list[int]:
        """Every S of the suite; each S has its own KNOWN."""
        return sorted({cell.length for cell in self.cells})

    def forgetting_of(self, origin: Origin) -> Forgetting:
        """The settings of an origin's trajectories: its r, and the largest S of its cells."""
        length = max(cell.length for cell in self.cells if cell.origin == origin)
        return self.forgetting.model_copy(update={"ratio": origin.ratio, "length": length})

    @property
    def trajectory_ids(self) -> list[str]:
        """The pilots p0, p1, ... (they decide the learning rates and are never evaluated), then t0, t1, ..., of which
        `first_trajectory` is the first.
        """
        evaluated = range(self.first_trajectory, self.first_trajectory + self.trajectories)
        return [f"p{i}" for i in range(self.pilots)] + [f"t{i}" for i in evaluated]

    def origin(self, slug: str) -> Origin:
        return _by_slug("origin", slug, self.origins)

    def cell(self, slug: str) -> Cell:
        return _by_slug("cell", slug, self.cells)


def _facts(group: str, length: int) -> Path:
    """Path of the facts of shipped networks; KnowError if there are none for that group and S."""
    shipped = sorted(path.parent.parent.name for path in PRETRAINED.glob("*/*/facts.json"))
    if group not in shipped:
        raise unknown("group of shipped networks", group, shipped or ["(none)"])
    path = PRETRAINED / group / str(length) / "facts.json"
    if not path.is_file():
        raise KnowError(f"know/pretrained/{group} has no networks for S = {length}")
    return path


def load_shipped() -> Shipped:
    """How the networks that ship are made (benchmarks/metatraining.yaml). Raises the errors of `load_suite`."""
    if not SHIPPED.is_file():
        raise KnowError(f"there is no {SHIPPED} here; run this from the repository's top folder, or name a suite")
    return _validated(SHIPPED, _parsed(SHIPPED, SHIPPED.read_text(encoding="utf-8")), Shipped)


def load_suite(name: str) -> Suite:
    """The suite with that name in benchmarks/suites/, or the suite in the .yaml file at that path.

    A file may name another suite as its `base`: what it gives replaces that of the base, key by key and, in sections
    such as `transfer`, entry by entry.

    Raises KnowError for an unknown suite, invalid YAML, an unknown key (it names the nearest one) or a wrong value.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    suite = _validated(path, _settings(path, name), Suite)
    names = [*(file.stem for file in (PACKAGE / "methods").glob("[!_]*.py")), *ARMS]
    for name, entry in suite.arms.named.items():
        method = (entry and entry.method) or name
        if method not in names:
            raise KnowError(f"{path}: {unknown('method or arm', method, names)}")
    return suite


def suite_names() -> list[str]:
    """Names of all suites in benchmarks/suites/."""
    return sorted(path.relative_to(SUITES).with_suffix("").as_posix() for path in SUITES.rglob("*.yaml"))


def suite_name(suite: str) -> str:
    """The name of a suite's folders in work/ and results/: the suite's name, or the name of its file."""
    return Path(suite).stem if suite.endswith((".yaml", ".yml")) else suite


def _settings(path: Path, name: str, above: tuple[Path, ...] = ()) -> typing.Any:
    """The settings of a suite's file, which replace those of its base. above: the files that build on this one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if SUITES not in path.parents:
            raise KnowError(f"suite file {path} does not exist") from error
        if not SUITES.is_dir():
            raise KnowError(f"there is no folder {SUITES} here; run suites from the repository's top folder") from error
        raise unknown("suite", name, suite_names()) from error
    except UnicodeDecodeError as error:
        raise KnowError(f"{path} is no text in UTF-8 ({error.reason})") from error
    settings = _parsed(path, text)
    if not isinstance(settings, dict) or "base" not in settings:
        return settings
    base = settings.pop("base")
    above = (*above, path)
    if not isinstance(base, str) or SUITES / f"{base}.yaml" in above:
        raise KnowError(f"{path}: base must be the name of another suite")
    merged = _settings(SUITES / f"{base}.yaml", base, above)
    for key, value in settings.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


def _parsed(path: Path, text: str) -> typing.Any:
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise KnowError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from error


def _validated(path: Path, settings: typing.Any, model: type[Settings]) -> typing.Any:
    try:
        return model.model_validate(settings)
    except pydantic.ValidationError as error:
        raise KnowError(f"{path}: {'; '.join(map(_explain, _relevant(error.errors())))}") from error
    except KnowError as error:
        raise KnowError(f"{path}: {error}") from error


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (plain YAML silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _relevant(errors: list[dict]) -> list[dict]:
    """The errors without pydantic's names of the members of a union, and without the members that were not meant."""
    deeper = {error["loc"][:-1] for error in errors if error["type"] != "literal_error"}
    kept = []
    for error in errors:
        *parents, last = error["loc"] or ("",)
        if str(last).startswith("literal[") and any(place[: len(parents)] == tuple(parents) for place in deeper):
            continue
        kept.append({**error, "loc": tuple(part for part in error["loc"] if "[" not in str(part))})
    return kept


def _explain(error: dict) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        names = {name for settings in Settings.__subclasses__() for name in settings.model_fields}
        key = str(error["loc"][-1])
        near = difflib.get_close_matches(key, names - {key}, n=1, cutoff=0.4)
        return f"unknown key {place!r}" + (f", did you mean {near[0]!r}?" if near else "")
    if error["type"] == "missing":
        return f"key {place!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _by_slug(kind: str, slug: str, items: list) -> typing.Any:
    for item in items:
        if item.slug == slug:
            return item
    raise unknown(kind, slug, [item.slug for item in items])
