"""Structured forgetting (paper, section 3): fine-tune on ever smaller nested subsets, and keep every snapshot."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from know.checkpoints import load_state, save_state
from know.errors import KnowError, as_path
from know.files import atomic, digest, resumable_folder
from know.fingerprint import code_hash
from know.formats import bits, same_bits
from know.identity import identity
from know.models import inner, load_into, state_of
from know.recording import OF_MANIFESTS, OF_SNAPSHOTS, Recorder, check_facts, check_state
from know.subsets import choose_fractions, nested_subsets
from know.trajectory import Trajectory

CALLED = {
    "images": "the size of the dataset",
    "fit": "the function fit: its code, or a value that it uses",
    "placebo": "the function placebo: its code, or a value that it uses",
}
"""What the error about unfinished work of other settings calls them."""


def forget(
    model: nn.Module,
    dataset: Any,
    fit: Callable[[nn.Module, Any], object],
    *,
    ratio: float = 0.5,
    length: int = 5,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    out: Path | str,
    placebo: Callable[[nn.Module, Any], object] | None = None,
    describe: Callable[[nn.Module, list[int]], Mapping[str, Any]] | None = None,
    references: Mapping[str, Mapping[str, Tensor]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Trajectory:
    """Make the forgetting trajectory of `model`, which was trained on all of `dataset` (theta_0 on D0).

    model: is trained in place, and ends as the snapshot of the smallest subset.
    dataset: anything with a length and integer indexing; `fit` gets a torch `Subset` of it.
    fit: `fit(model, subset)`, your training function. If it has `state_dict()` and `load_state_dict()`, its state, such
        as that of an optimiser, is kept too, so that a resumed run equals an uninterrupted one. (torch's global random
        state, from which a loader that shuffles draws, is not kept: seed it in `fit` if this matters to you.) If it has
        a text `fingerprint`, that says whether it is the same; else its code, arguments, attributes and closure do.
    ratio, length: S snapshots at 1, r, r^2, ... of the data; or `fractions`, smallest first, ending at 1.
    out: the folder to make. An interrupted call is resumed if weights, size of the data, settings, `fit` and the code
        of this package are the same. A finished folder is returned as it is if the first four are; any other folder is
        an error. Two calls never write into one folder.
    placebo: `placebo(model, subset)`, like `fit`, but it trains on all of the data, for as many steps as `fit` makes on
        that subset. Its snapshots, from the same theta_0, are kept beside the others (`Trajectory.placebo`): what
        happens to them too is no forgetting.
    describe: further facts about a snapshot, from (model, indices of the subset); the manifest keeps them with `facts`.
    references: further weights to keep in the folder, by name: modules or state_dicts.

    Returns the finished trajectory, smallest subset first.
    """
    _check_arguments(model, dataset, fit, placebo)
    if describe is not None and not callable(describe):
        raise KnowError(f"describe must be a function of model and indices, got a {type(describe).__name__}")
    for name, value in (("references", references), ("facts", facts)):
        if not isinstance(value, Mapping | None):
            raise KnowError(f"{name} must be a mapping, got a {type(value).__name__}")
    out, fractions = as_path("out", out), choose_fractions(fractions, ratio, length)
    subsets = nested_subsets(len(dataset), seed=seed, fractions=fractions)
    at_hand = {"the model": model, "the plain model": inner(model), "the dataset": dataset}
    what, unknown = _what(fit, at_hand)
    facts = check_facts("facts", facts, (*OF_MANIFESTS, "fit", "fractions", "images"))
    settings = {"fractions": fractions, "seed": seed, "images": len(dataset), "fit": what, **facts}
    if placebo is not None:
        settings["placebo"], more = _what(placebo, at_hand)
        unknown = [*unknown, *more]
    further = _check_references(references or {})
    weights = _hash_weights(model)
    fingerprint = digest({"settings": settings, "weights": weights})
    if (out / "manifest.json").is_file():
        trajectory = Trajectory.load(out)
        if trajectory.manifest.get("fingerprint") != fingerprint:
            raise KnowError(f"{out} holds a trajectory of other weights, data, settings or `fit`; name another folder")
        if lacking := sorted(further.keys() - trajectory.manifest["references"].keys()):
            raise KnowError(f"{out} is finished and keeps no reference weights {lacking[0]!r}; name another folder")
        _say_unknown(unknown, out)
        load_into(model, load_state(trajectory.paths[0]))
        return trajectory
    _refuse_other_content(out)
    theta_0 = copy.deepcopy(state_of(model))
    version = code_hash("know.forgetting:forget")
    begun = {CALLED.get(name, name): value for name, value in settings.items()}
    begun |= {"the weights of the model": weights, "the version of know": version}
    with _restored(model, theta_0), resumable_folder(out, begun) as folder:
        recorder, beside = Recorder(folder, fractions), Recorder(folder, fractions, "p")
        if fractions[-1] in recorder:
            _say_unknown(unknown, folder)
        _walk(model, dataset, fit, recorder, subsets, describe)
        if placebo is not None:
            load_into(model, recorder.state(fractions[-1]))
            _walk(model, dataset, placebo, beside, subsets, describe)
            load_into(model, recorder.state(fractions[0]))
        for name, state in further.items():
            save_state(folder / f"{name}.safetensors", state)
        for extra in folder.glob("fit-*.pt"):
            extra.unlink()
        kept = {name: f"{name}.safetensors" for name in further}
        others = beside.files[:-1] if placebo is not None else []
        recorder.finish(kept, others, fingerprint=fingerprint, seed=seed, **facts)
    return Trajectory.load(out)


def _walk(
    model: nn.Module,
    dataset: Any,
    fit: Callable[[nn.Module, Any], object],
    recorder: Recorder,
    subsets: Sequence[list[int]],
    describe: Callable[[nn.Module, list[int]], Mapping[str, Any]] | None,
) -> None:
    """Make the snapshots of one trajectory that are not recorded yet, from theta_0 on, which `model` is."""
    stateful = hasattr(fit, "state_dict") and hasattr(fit, "load_state_dict")
    fractions = recorder.fractions
    if fractions[0] in recorder:  # all are there; the states of `fit` may be gone, and are not needed
        load_into(model, recorder.state(fractions[0]))
        return
    for k, (fraction, index) in enumerate(zip(reversed(fractions), reversed(subsets), strict=True)):
        extra = recorder.folder / f"fit-{recorder.letter}{k}.pt"
        if fraction in recorder and (extra.is_file() or not stateful):  # written by an interrupted call
            load_into(model, recorder.state(fraction))
            if stateful:
                fit.load_state_dict(torch.load(extra, map_location="cpu", weights_only=True))
            continue
        if k > 0:
            fit(model, Subset(dataset, index))
            _check_step(recorder.state(fractions[-k]), model, fraction)
        if stateful:
            buffer = io.BytesIO()  # torch's own writer raises no OSError where the disk is full
            torch.save(fit.state_dict(), buffer)
            with atomic(extra) as temporary:
                temporary.write_bytes(buffer.getbuffer())
                _check_readable(temporary)
        said = check_facts(
            "what describe returns", describe(model, index) if describe else {}, (*OF_SNAPSHOTS, "images")
        )
        recorder.add(model, fraction, images=len(index), **said)


def _check_readable(path: Path) -> None:
    """KnowError if an interrupted run could not go on with a state of `fit`."""
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise KnowError(
            f"fit.state_dict() holds something that cannot be loaded again safely: {str(error).splitlines()[0]} Let it"
            " hold tensors, numbers, texts, lists and mappings alone"
        ) from error


def _what(fit: Any, at_hand: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What a training function is, and the parts of it that could not be compared."""
    named = getattr(fit, "fingerprint", None)
    return (named, []) if isinstance(named, str) else identity(fit, at_hand)


def _check_arguments(model: Any, dataset: Any, fit: Any, placebo: Any) -> None:
    """KnowError that names the argument which is not what `forget` takes."""
    if not hasattr(model, "state_dict") or not hasattr(model, "load_state_dict"):
        raise KnowError(f"model must be a torch module, got a {type(model).__name__}")
    parameters = inner(model).parameters() if isinstance(model, nn.Module) else ()
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in parameters):
        raise KnowError("model has lazy layers without weights; call it once on a batch first")
    if not hasattr(dataset, "__len__"):
        raise KnowError(
            f"dataset must have a length and integer indexing, and a {type(dataset).__name__} has no length"
        )
    if isinstance(model, nn.Module):
        check_state("model must be", model)
    if not callable(fit):
        raise KnowError(f"fit must be a function fit(model, subset), got a {type(fit).__name__}")
    if placebo is not None and not callable(placebo):
        raise KnowError(f"placebo must be a function placebo(model, subset), got a {type(placebo).__name__}")


def _check_references(references: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
    """Weights to keep under names that are file names, and none of the snapshots'."""
    for name in references:
        if not re.fullmatch(r"\w[\w.-]*", name) or re.fullmatch(r"[sp]\d+", name):
            raise KnowError(f"references: {name!r} cannot name a file beside the snapshots; choose another name")
    return {name: check_state(f"references[{name!r}] must be", state) for name, state in references.items()}


def _check_step(before: Mapping[str, Tensor], model: nn.Module, fraction: float) -> None:
    """KnowError if `fit` renamed tensors, left every weight as it was, or made values that are not finite."""
    if changed := sorted(before.keys() ^ state_of(model).keys()):
        raise KnowError(
            f"fit on fraction {fraction:g} changed the names of the model's tensors, such as {changed[0]!r}; let it"
            " take off what it puts on, such as pruning or a parametrization"
        )
    state = state_of(model).items()
    now = {name: tensor.cpu() for name, tensor in state if tensor.is_floating_point() or tensor.is_complex()}
    for name, tensor in now.items():
        if before[name].isfinite().all() and not tensor.isfinite().all():
            had = [other for other in sorted(now) if not before[other].isfinite().all()]
            raise KnowError(
                f"after fit on fraction {fraction:g} tensor {name!r} has values that are not finite"
                + (f"; {had[0]!r} had such values before it" if had else "")
            )
    if all(same_bits(before[name], tensor) for name, tensor in now.items()):
        raise KnowError(f"fit on fraction {fraction:g} left all weights as they were, so nothing was forgotten")


def _say_unknown(unknown: Sequence[str], out: Path) -> None:
    """Warn that a run is taken for the same although parts of `fit` could not be compared."""
    if unknown:
        shown = ", ".join(unknown[:3])
        warnings.warn(f"{out} is taken for the same run, but {shown} of fit could not be compared", stacklevel=3)


@contextlib.contextmanager
def _restored(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the model its weights back if the block is interrupted, so that the same call resumes it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # what `fit` made of the model may not take them; its own error counts
            load_into(model, state)
        raise


def _refuse_other_content(out: Path) -> None:
    """KnowError if something other than a trajectory or an empty folder stands at `out`, which the run will replace."""
    if out.exists() and not (out / "manifest.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise KnowError(f"{out} exists and is no trajectory; name a new folder")


def _hash_weights(model: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(state_of(model).items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(bits(tensor).numpy().tobytes())
    return state.hexdigest()
