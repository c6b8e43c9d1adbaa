"""Structured forgetting (paper, section 3): fine-tune on ever smaller nested subsets, and keep every snapshot."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from know.checkpoints import save_state
from know.errors import KnowError
from know.files import atomic, digest, resumable_folder
from know.fingerprint import code_hash
from know.trajectory import Recorder, Trajectory, check_fractions, nested_subsets


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
    describe: Callable[[nn.Module, list[int]], Mapping[str, Any]] | None = None,
    references: Mapping[str, Mapping[str, Tensor]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Trajectory:
    """Make the forgetting trajectory of `model`, which was trained on all of `dataset` (theta_0 on D0).

    model: is trained in place, and ends as the snapshot of the smallest subset.
    dataset: anything with a length and integer indexing; `fit` gets a torch `Subset` of it.
    fit: `fit(model, subset)`, your training function. If it has `state_dict()` and `load_state_dict()`, its state, such
        as that of an optimiser, is kept too, so that a resumed run equals an uninterrupted one.
    ratio, length: S snapshots at 1, r, r^2, ... of the data; or `fractions`, smallest first, ending at 1.
    out: the folder to make. An interrupted call is resumed if weights, size of the data, settings and `fit` are the
        same. A finished folder of the same settings is returned as it is; any other folder is an error.
    describe: further facts about a snapshot, from (model, indices of the subset); the manifest keeps them with `facts`.
    references: further weights to keep in the folder, by name.

    Returns the finished trajectory, smallest subset first.
    """
    fractions = check_fractions(fractions or [ratio**k for k in reversed(range(length))])
    subsets = nested_subsets(len(dataset), seed=seed, fractions=fractions)
    if not subsets[0]:
        raise KnowError(f"the smallest subset, {fractions[0]:g} of {len(dataset)} images, is empty")
    out = Path(out)
    settings = {"fractions": fractions, "seed": seed, "images": len(dataset), "fit": _source_of(fit), **(facts or {})}
    code = code_hash("know.forgetting:forget")
    fingerprint = digest({"settings": settings, "weights": _hash_weights(model), "code": code})
    if (out / "manifest.json").is_file():
        trajectory = Trajectory.load(out)
        if trajectory.manifest.get("fingerprint") != fingerprint:
            raise KnowError(f"{out} holds a trajectory of other weights, data or settings; remove it or name another")
        return trajectory
    _refuse_other_content(out)
    stateful = hasattr(fit, "state_dict") and hasattr(fit, "load_state_dict")
    theta_0 = copy.deepcopy(model.state_dict())
    with _restored(model, theta_0), resumable_folder(out, fingerprint) as folder:
        recorder = Recorder(folder, fractions)
        for k, (fraction, index) in enumerate(zip(reversed(fractions), reversed(subsets), strict=True)):
            extra = folder / f"fit-{k}.pt"
            if fraction in recorder:  # written by an interrupted call
                model.load_state_dict(recorder.state(fraction))
                if stateful:
                    fit.load_state_dict(torch.load(extra, weights_only=True))
                continue
            if k > 0:
                fit(model, Subset(dataset, index))
            if stateful:
                buffer = io.BytesIO()  # torch's own writer raises no OSError where the disk is full
                torch.save(fit.state_dict(), buffer)
                with atomic(extra) as temporary:
                    temporary.write_bytes(buffer.getbuffer())
            recorder.add(model, fraction, images=len(index), **(describe(model, index) if describe else {}))
        for name, state in (references or {}).items():
            save_state(folder / f"{name}.safetensors", state)
        for extra in folder.glob("fit-*.pt"):
            extra.unlink()
        kept = {name: f"{name}.safetensors" for name in references or {}}
        recorder.finish(kept, fingerprint=fingerprint, seed=seed, **(facts or {}))
    return Trajectory.load(out)


@contextlib.contextmanager
def _restored(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the model its weights back if the block is interrupted, so that the same call resumes it."""
    try:
        yield
    except BaseException:
        model.load_state_dict(state)
        raise


def _refuse_other_content(out: Path) -> None:
    """KnowError if something other than a trajectory or an empty folder stands at `out`, which the run will replace."""
    if out.exists() and not (out / "manifest.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise KnowError(f"{out} exists and is no trajectory; name a new folder")


def _source_of(fit: Callable) -> str:
    """Hash of the source text of a training function, so that a run is not resumed with another one."""
    try:
        return digest(inspect.getsource(fit if inspect.isroutine(fit) else type(fit)))
    except (OSError, TypeError):
        return getattr(fit, "__qualname__", type(fit).__qualname__)


def _hash_weights(model: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
