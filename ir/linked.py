"""A doubly linked list that tolerates insertion and removal while it is walked, each in constant time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Link(Generic[T]):
    """One position of a list.

    It outlives its item: when that is removed, a walk that stands here still reaches the rest of the list.
    """

    __slots__ = ("item", "next", "prev")

    def __init__(self, item: T | None) -> None:
        self.item = item
        self.prev: Link[T] = self
        self.next: Link[T] = self


class LinkedList(Generic[T]):
    """Items in order. Whoever inserts one keeps the link that `insert` returns, to remove the item by."""

    __slots__ = ("_count", "ends")

    def __init__(self) -> None:
        self.ends: Link[T] = Link(None)
        """Before the first item and after the last one."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        """The items; any of them may be removed and others inserted meanwhile."""
        link = self.ends.next
        while link is not self.ends:
            item = link.item
            if item is not None:
                yield item
            link = link.next

    @property
    def first(self) -> T | None:
        """The first item."""
        return self.ends.next.item

    @property
    def last(self) -> T | None:
        """The last item."""
        return self.ends.prev.item

    def insert(self, item: T, after: Link[T]) -> Link[T]:
        """Put an item behind `after`, a link of this list or its `ends`."""
        link = Link(item)
        link.prev, link.next = after, after.next
        after.next.prev = link
        after.next = link
        self._count += 1
        return link

    def remove(self, link: Link[T]) -> None:
        """Take out the item of a link of this list."""
        link.prev.next, link.next.prev = link.next, link.prev
        link.item = None
        self._count -= 1

    def rearrange(self, items: Iterable[T]) -> list[Link[T]]:
        """Put the items, all that there are, into a new order, and give their new links."""
        self.ends.next = self.ends.prev = self.ends
        self._count = 0
        return [self.insert(item, self.ends.prev) for item in items]
