"""Repeats shared out over processes until the time is up, each handed back as it ends."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any


def share_out(
    function: Callable[..., Any],
    tasks: Iterator[tuple],
    *,
    processes: int,
    time_limit: float,
    kind: Callable[..., Hashable] = lambda *task: None,
) -> Iterator[tuple[tuple, Any]]:
    """function(*task) for one task after the other, as long as the next is expected to end in time.

    Args:
        function: of a module that can be imported; it sets its own threads.
        tasks: in order; only as many as are under way are taken from it.
        processes: at once.
        time_limit: seconds from now.
        kind: task -> what tasks of equal length have in common.

    Returns:
        (task, result) in the order in which they end.
    """
    stop = time.monotonic() + time_limit
    longest: dict[Hashable, float] = {}
    running: dict[Future, tuple[tuple, float]] = {}
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        while True:
            while len(running) < processes and (task := next(tasks, None)) is not None:
                if time.monotonic() + longest.get(kind(*task), 0.0) > stop:
                    tasks = iter(())
                    break
                running[pool.submit(function, *task)] = (task, time.monotonic())
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, began = running.pop(future)
                longest[kind(*task)] = max(longest.get(kind(*task), 0.0), time.monotonic() - began)
                yield task, future.result()
