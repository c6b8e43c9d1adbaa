"""Processes that share the independent parts of one job; the result is the same for any number of processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.training import deterministic


@contextlib.contextmanager
def workers(processes: int) -> Iterator[Callable[[Callable, Iterable], Iterable[Any]]]:
    """Give a `map` over that many processes, each with as many threads as this one; 1 means this process itself.

    Functions and items are sent by pickle. An error in a worker is raised here, and items not yet begun are cancelled.
    """
    if processes == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of torch's threads
    threads = (torch.get_num_threads(),)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=threads)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    deterministic(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent ends. A killed parent cannot stop its workers, which would then go on unseen."""
    multiprocessing.parent_process().join()
    os._exit(1)
