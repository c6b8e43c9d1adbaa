"""The run record, which connects running and reporting: a row per cell, trajectory, arm, rate policy and fine-tune.

Everything in a table or figure is computed from these rows. They hold nothing that differs between two runs of the same
code on the same machine: times, memory, commit and environment are in the files of provenance and cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.settings import Policy
from know.errors import KnowError
from know.files import write_csv

if TYPE_CHECKING:
    import pandas as pd

Fraction = Annotated[float, Field(ge=0, le=1)]


class RunRecord(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cell: str
    track: Literal["overflow", "retrodiction"]
    source: str
    target: str
    network: str
    share: Fraction
    """Share of the target images."""
    rate: Annotated[float, Field(gt=0, lt=1)]
    """r, the ratio of consecutive subsets."""
    length: Annotated[int, Field(ge=2)]
    """S, the number of snapshots that methods use."""
    trajectory: str
    arm: str
    predictor: str
    """The method, without its options; empty for references."""
    depth: Annotated[int, Field(ge=0)]
    """Number of recursions of the method; 0 for references and methods without depth."""
    policy: Policy
    """The rate policy."""
    fine_tune: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    on_edge: bool
    """Whether the tuned rate is still the first or last of the (extended) grid."""
    status: Literal["ok", "diverged"]
    accuracy: Fraction
    """Target test accuracy after the last epoch."""
    source_accuracy: Fraction
    """Source test accuracy of the weights before fine-tuning, with the running statistics that the arm hands on: for a
    prediction those of theta_0 or, by `normalisation`, its own; 0 where the weights are not finite."""
    source_accuracy_recalibrated: Fraction
    """The same with running statistics measured anew on source training images; equal where there are none."""
    step: Annotated[float, Field(ge=0)] | None
    """|weights - theta_0| / |theta_0| over the predicted tensors; None where a prediction is not finite."""
    weight_error: Annotated[float, Field(ge=0)] | None
    """|weights - theta_{-1}| / |theta_0 - theta_{-1}|; only on the retrodiction track, where theta_{-1} exists."""
    source_seed: int
    target_seed: int
    source_data: str
    target_data: str
    code: str


class PilotRecord(BaseModel):
    """One run of the learning-rate search, with validation only, on a trajectory that is never evaluated."""

    model_config = ConfigDict(extra="forbid")

    cell: str
    trajectory: str
    arm: str
    fine_tune: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    status: Literal["ok", "diverged"]
    validation_accuracy: Fraction
    validation_loss: float | None


def write_records(path: Path, records: Iterable[BaseModel], kind: type[BaseModel]) -> None:
    """Write validated rows, sorted by their content so that the order of computing does not matter."""
    rows = [record.model_dump() for record in records]
    keys = [name for name, field in kind.model_fields.items() if field.annotation in (str, int, float)]

    def content(row: dict) -> list[str]:
        shown = [row[key] if isinstance(row[key], str) else f"{row[key]:020.9f}" for key in keys]
        return [*shown, repr(row)]  # the whole row decides if those are equal

    rows.sort(key=content)
    write_csv(path, rows, list(kind.model_fields))


def read_records(paths: Iterable[Path | str], kind: type[BaseModel]) -> pd.DataFrame:
    """Read rows of several files as one table; KnowError names file and line of a row that breaks the schema."""
    import pandas as pd  # here, since writing does not need it and importing it would cost every cell half a second

    rows = []
    for path in paths:
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except FileNotFoundError as error:
            raise KnowError(f"{path} does not exist; run the suite first") from error
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise KnowError(f"{path} is no table of records ({error}); it is corrupt or truncated") from error
        for line, row in enumerate(table.to_dict("records"), start=2):
            try:
                rows.append(kind.model_validate({k: None if v == "" and k in _OPTIONAL else v for k, v in row.items()}))
            except pydantic.ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                raise KnowError(f"{path}, line {line}, column {place}: {first['msg']}") from error
    return pd.DataFrame([row.model_dump() for row in rows], columns=list(kind.model_fields))


_OPTIONAL = {"step", "weight_error", "validation_loss"}
