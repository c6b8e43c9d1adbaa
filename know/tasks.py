"""The user's fine-tuning task: checked, run in this process or in several, and its results kept as they come."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from know.errors import KnowError
from know.files import listing, write_text
from know.scripts import function_of, number_in

Task = Callable[[Path, float, int], Any]
"""fine_tune(checkpoint, learning_rate, seed): validation score, or validation and test score; higher is better."""
RETURNS = "the task must return one number, or two (validation and test score)"


def check_signature(function: Task) -> None:
    """KnowError if a function cannot be called as a task is."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # it does not say what it takes
        return
    try:
        signature.bind(Path(), 0.1, 0)
    except TypeError as error:
        raise KnowError(f"the task is called as fine_tune(checkpoint, learning_rate, seed): {error}") from error


class Results:
    """Results of fine-tunes in a file, one line each, written as they come."""

    def __init__(self, path: Path):
        self.path, self.known, self.added = path, {}, 0
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
            if line.endswith("\n"):  # else its process was killed while it wrote
                run = json.loads(line)
                if run["status"] == "ok":  # what failed is tried again, since its cause may be gone
                    self.known[run["candidate"], run["learning_rate"], run["seed"]] = run
        lines = "".join(json.dumps(run) + "\n" for run in self.known.values())
        write_text(path, lines)

    @property
    def any_score(self) -> bool:
        return any(run["status"] == "ok" for run in self.known.values())

    def add(self, run: dict[str, Any]) -> None:
        self.known[run["candidate"], run["learning_rate"], run["seed"]] = run
        self.added += 1
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")


@contextlib.contextmanager
def results_in(folder: Path) -> Iterator[Results]:
    """The results that are kept in a folder. Without a score a failing block leaves it empty, for a mended call; with
    some it leaves no candidate, since the task may have changed one.
    """
    results = Results(folder / "results.jsonl")
    try:
        yield results
    except KnowError:
        shutil.rmtree(folder / "candidates", ignore_errors=True)
        if not results.any_score:
            results.path.unlink()
        raise


def outcomes_of(
    stage: str,
    asked: Iterable[tuple[str, float, int]],
    *,
    results: Results,
    run: Callable[..., Iterator[tuple[tuple[str, float, int], dict[str, Any]]]],
    places: Mapping[str, Path],
    bar: tqdm,
    say: Callable[[str], None],
    most: int,
    jobs: int,
) -> dict[tuple[str, float, int], dict[str, Any]]:
    """Results of these fine-tunes, of which those that are not known yet are done."""
    wanted = list(dict.fromkeys(asked))
    undone = [key for key in wanted if key not in results.known]
    begun = time.monotonic()
    for (name, rate, seed), outcome in run([(key, places[key[0]]) for key in undone]):
        if outcome["error"].startswith(RETURNS) and not results.any_score:
            raise KnowError(outcome["error"])  # it never returned a score, and every further run would be lost too
        results.add({"stage": stage, "candidate": name, "learning_rate": rate, "seed": seed, **outcome})
        if outcome["error"]:
            tqdm.write(f"{name} at rate {rate:g}, seed {seed}: {outcome['error']}")
        bar.update(1)
        if results.added == 1:
            took = time.monotonic() - begun
            left = took * (most - bar.n) / (60 * jobs)
            say(f"the first took {took:.3g} s: about {left:.2g} minutes are left at that pace")
    return {key: results.known[key] for key in wanted}


@contextlib.contextmanager
def runner(task: Task | str, function: Task, jobs: int) -> Iterator[Callable[..., Iterator[tuple[Any, dict]]]]:
    """Runs fine-tunes in this process or in several; yields (key, outcome) as they end."""
    if jobs == 1:
        yield lambda asked: ((key, _outcome(function, place, *key[1:])) for key, place in asked)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_worker, (task, threads))
    try:
        yield functools.partial(_in_pool, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_pool(
    pool: ProcessPoolExecutor, asked: Sequence[tuple[tuple[str, float, int], Path]]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    waiting = {pool.submit(_in_worker, place, *key[1:]): key for key, place in asked}
    for count, future in enumerate(as_completed(waiting)):
        try:
            yield waiting[future], future.result()
        except BrokenProcessPool as error:
            why = "perhaps for lack of memory; the same call goes on"
            if not count:  # each process reads the calling script anew
                why += '. A script that calls know.compare needs `if __name__ == "__main__":`'
            raise KnowError(f"a process of the comparison died, {why}") from error


_worker: dict[str, Task | KnowError] = {}
"""The task of a worker process, read once when it begins, or why it cannot be."""


def _begin_worker(task: str, threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        _worker["task"] = function_of(task, "--task")
    except KnowError as error:  # raised here, it would end the process without a word
        _worker["task"] = error


def _end_with_parent() -> None:
    """End this process when its parent ends. A killed comparison cannot stop its workers, which would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _in_worker(place: Path, rate: float, seed: int) -> dict[str, Any]:
    if isinstance(task := _worker["task"], KnowError):
        raise task
    return _outcome(task, place, rate, seed)


def _outcome(function: Task, place: Path, rate: float, seed: int) -> dict[str, Any]:
    """What one fine-tune gave: status, validation and test score, and the error of a lost one."""
    lost, before, wrong = {"status": "failed", "validation": None, "test": None}, listing(place), ""
    try:
        with contextlib.chdir(Path.cwd()):  # what the task enters it may not leave, and paths go on to mean the same
            values = _scores(function(place, rate, seed))
    except KnowError as error:
        wrong = str(error)
    except (Exception, SystemExit) as error:  # the user's own function: whatever it raises costs this run alone
        wrong = _in_words(error)
    if listing(place) != before:
        raise KnowError(f"the task changed {place}, which it should only read; make the trajectory or --out anew")
    if wrong:
        return {**lost, "error": wrong}
    if not all(map(math.isfinite, values)):
        return {**lost, "error": f"the score is {values[0]:g}" + (f", {values[1]:g}" if len(values) > 1 else "")}
    return {"status": "ok", "validation": values[0], "test": values[1] if len(values) > 1 else None, "error": ""}


def _in_words(error: BaseException) -> str:
    """An error in one line that can be written as UTF-8, whatever it says."""
    try:
        said = f"{type(error).__name__}: {error}"
    except Exception:  # its own text is at fault
        said = type(error).__name__
    said = said.encode("utf-8", "backslashreplace").decode("utf-8")
    return " ".join(said.split())[:400]  # torch names the tensors on later lines


def _scores(answer: Any) -> list[float]:
    """The validation score, or validation and test score; KnowError for anything else that a task returned."""
    several = isinstance(answer, tuple | list)
    values = list(answer) if several else [answer]
    shown = ", ".join(type(value).__name__ for value in values[:5])
    wrong = KnowError(f"{RETURNS}; it returned {f'({shown})' if several else shown}")
    values = [number_in(value) for value in values]
    if len(values) not in (1, 2) or None in values:
        raise wrong
    try:
        return [float(value) for value in values]
    except OverflowError as error:
        raise wrong from error
