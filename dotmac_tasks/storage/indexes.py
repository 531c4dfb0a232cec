"""
How the storage in memory finds what has expired, and lists in order.

None of it is locked: all of it is guarded by the lock of the storage.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf

__all__ = ["Entry", "ExpiryQueue", "SortedNumbers"]

_CHUNK = 512
_SLACK = 64


class Entry:
    """
    What records of all kinds have in common; guarded by the storage's lock.

    Instants are those of the monotonic clock. `due` and `ticket` belong to the
    queue; the ticket is 0 and `due` infinite outside of it.
    """

    __slots__ = ("due", "expires", "name", "ticket")

    def __init__(self, name: str, expires: float) -> None:
        self.name = name
        self.expires = expires
        self.due = inf
        self.ticket = 0


class ExpiryQueue:
    """
    Entries by the instants at which they may have expired; guarded by the storage's lock.

    An entry has at most one valid place in the heap, which may come before its
    expiry but never after it: a renewal, which only moves the expiry away, does
    not touch the heap.
    """

    __slots__ = ("_heap", "_numbers", "_tickets")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._tickets: dict[int, Entry] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._heap)

    def keep_until(self, entry: Entry, expires: float) -> None:
        """
        Move an entry's expiry.
        """
        entry.expires = expires
        if expires < entry.due:
            self.schedule(entry, expires)

    def schedule(self, entry: Entry, due: float) -> None:
        """
        Give an entry a place in the heap instead of its former one, which goes stale.

        Stale ones, whose ticket is gone, are left behind until they come to the
        top or outnumber the valid ones.
        """
        tickets, heap = self._tickets, self._heap
        tickets.pop(entry.ticket, None)
        entry.ticket = ticket = next(self._numbers)
        entry.due = due
        tickets[ticket] = entry
        heappush(heap, (due, ticket))
        if len(heap) > 2 * len(tickets) + _SLACK:
            heap[:] = [(entry.due, ticket) for ticket, entry in tickets.items()]
            heapify(heap)

    def discard(self, entry: Entry) -> None:
        """
        Forget an entry; its place goes stale.
        """
        self._tickets.pop(entry.ticket, None)

    def find_expired(self, now: float) -> Entry | None:
        """
        Return a record that is expired, putting off those that were kept longer.
        """
        heap, tickets = self._heap, self._tickets
        while heap and heap[0][0] <= now:
            ticket = heap[0][1]
            entry = tickets.get(ticket)
            if entry is not None and entry.expires <= now:
                return entry
            heappop(heap)
            if entry is not None:
                del tickets[ticket]
                entry.due, entry.ticket = inf, 0
                self.keep_until(entry, entry.expires)
        return None

    def count_expired(self, now: float) -> int:
        """
        Count without removing, by those parts of the heap that are due.
        """
        heap, tickets = self._heap, self._tickets
        count = 0
        indexes = [0]
        while indexes:
            index = indexes.pop()
            if index < len(heap) and heap[index][0] <= now:
                entry = tickets.get(heap[index][1])
                count += entry is not None and entry.expires <= now
                indexes += (2 * index + 1, 2 * index + 2)
        return count


class SortedNumbers:
    """
    Distinct numbers in order, in chunks; guarded by the storage's lock.

    Adding and removing move the numbers of one chunk only, wherever they are. Each
    step leaves it whole, so that an interrupt between two of them does no harm.
    """

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: list[list[int]] = []

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def add(self, number: int) -> None:
        """
        Put a number in its place.
        """
        chunks = self._chunks
        if not chunks:
            chunks.append([number])
            return
        index = min(self._find_chunk(number), len(chunks) - 1)
        chunk = chunks[index]
        insort(chunk, number)
        if len(chunk) > 2 * _CHUNK:
            chunks[index : index + 1] = [chunk[:_CHUNK], chunk[_CHUNK:]]

    def remove(self, number: int) -> None:
        """
        Take out a number; harmless where it is not there.
        """
        index = self._find_chunk(number)
        chunk = self._chunks[index] if index < len(self._chunks) else []
        at = bisect_left(chunk, number)
        if chunk == [number]:
            del self._chunks[index]
        elif chunk[at : at + 1] == [number]:
            del chunk[at]

    def below(self, number: float) -> Iterator[int]:
        """
        Yield what is below `number`, the largest first.
        """
        index = self._find_chunk(number)
        if index < len(self._chunks):
            chunk = self._chunks[index]
            yield from reversed(chunk[: bisect_left(chunk, number)])
        for chunk in reversed(self._chunks[:index]):
            yield from reversed(chunk)

    def _find_chunk(self, number: float) -> int:
        return bisect_left(self._chunks, number, key=lambda chunk: chunk[-1])
