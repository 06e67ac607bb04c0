"""Pages that wait for company: those of one padded shape share a batch, whatever their sizes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Buckets(Generic[Item]):
    """Waiting items by key, the key that waits longest first."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, tuple[int, list[Item]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(items) for _, items in self._waiting.values())

    def add(self, key: Hashable, item: Item, batch_size: int) -> None:
        """Let an item wait under its key, of which `batch_size` make a full batch."""
        _, items = self._waiting.get(key, (0, []))
        items.append(item)
        self._waiting[key] = (batch_size, items)

    def full(self) -> list[Item] | None:
        """A full batch, if there is one."""
        for key, (batch_size, items) in self._waiting.items():
            if len(items) >= batch_size:
                return self._take(key, batch_size)
        return None

    def oldest(self) -> list[Item] | None:
        """What waits under the oldest key, full or not; None if nothing waits."""
        for key, (batch_size, _) in self._waiting.items():
            return self._take(key, batch_size)
        return None

    def clear(self) -> list[Item]:
        """Everything that waits, waiting no more."""
        items = [item for _, waiting in self._waiting.values() for item in waiting]
        self._waiting.clear()
        return items

    def _take(self, key: Hashable, count: int) -> list[Item]:
        batch_size, items = self._waiting.pop(key)
        if rest := items[count:]:
            self._waiting[key] = (batch_size, rest)
        return items[:count]
