"""Work on several backends at once, so that one whose storage hangs holds up no other."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

_MOST_THREADS = 16


def for_each(items: Iterable[T], work: Callable[[T], None], *, name: str) -> None:
    """Do the work for all items, some of them at the same time, and return when all of it is done.

    :param name: what the threads are called.
    :raises Exception: what the first work that failed has raised; the others are done all the same.
    """
    turns = threading.Semaphore(_MOST_THREADS)
    failures: list[BaseException] = []

    def run(item: T) -> None:
        with turns:
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001
                # Raised by whoever waits for it.
                failures.append(error)

    # Daemons, so that nobody who wants to end the process has to wait for storage that hangs.
    threads = [threading.Thread(target=run, args=(item,), name=f"volmig-{name}", daemon=True) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def by_backend(items: Iterable[T], address: Callable[[T], str]) -> list[list[T]]:
    """Return the items in groups, one for each backend.

    :param address: gives the pool of an item, as ``host@backend#pool``.
    """
    groups: dict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[address(item).partition("#")[0]].append(item)
    return list(groups.values())
