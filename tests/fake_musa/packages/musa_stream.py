"""Streams and events of the simulated device: handles, and which one is current."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

_handles = itertools.count(0x1000, 0x10)


class Stream:
    """A stream other than the default one has a handle of its own."""

    def __init__(self, _device: object = None, musa_stream: int = -1, **_options: object) -> None:
        self.musa_stream = next(_handles) if musa_stream < 0 else musa_stream

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def wait_stream(self, _other: Stream) -> None:
        pass

    def wait_event(self, _event: Event) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event


class Event:
    """Complete as soon as it is recorded."""

    def __init__(self, **_options: bool) -> None:
        self.stream: Stream | None = None
        self.time = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.stream, self.time = stream or current_stream(), time.perf_counter()

    def wait(self, _stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.time - self.time)


_default = Stream(musa_stream=0)
_current = _default


def default_stream(_device: object = None) -> Stream:
    return _default


def current_stream(_device: object = None) -> Stream:
    return _current


def set_stream(new: Stream) -> None:
    global _current
    _current = new


@contextlib.contextmanager
def stream(new: Stream | None) -> Iterator[None]:
    before = current_stream()
    set_stream(new or before)
    try:
        yield
    finally:
        set_stream(before)
