"""A list for counting passes in hooks and forwards, which explaining does not put back as it does a plain list."""

import threading


class Tally(threading.local):
    """Numbers that were appended."""

    def __init__(self, items=()):
        self.items = list(items)

    def __reduce__(self):
        return Tally, (self.items,)

    def append(self, item):
        self.items.append(item)

    def clear(self):
        self.items.clear()

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def __eq__(self, other):
        return self.items == other

    __hash__ = None
