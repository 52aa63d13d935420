"""A call queues its work on the current stream and returns: it waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from device_calls import Call, each_call
from gpu_contract import require_gpu

require_gpu()

# About a tenth of a second.
CYCLES = 200_000_000


@contextmanager
def busy_default_stream() -> Iterator[None]:
    """The default stream is at work from before the body until after it."""
    torch.cuda.synchronize()
    torch.cuda._sleep(CYCLES)
    over = torch.cuda.Event()
    over.record()
    yield
    assert not over.query(), "something waited for the default stream"
    torch.cuda.synchronize()


@each_call
def test_the_host_does_not_wait(call: str) -> None:
    want, queued = Call(call), Call(call)
    want.run()
    with busy_default_stream():
        queued.run()
    queued.assert_wrote_like(want)


@each_call
def test_work_goes_to_the_current_stream(call: str) -> None:
    want, aside = Call(call), Call(call)
    want.run()
    side = torch.cuda.Stream()
    with busy_default_stream():
        with torch.cuda.stream(side):
            aside.run()
        side.synchronize()
    aside.assert_wrote_like(want)


@each_call
def test_work_follows_what_is_queued_before_it(call: str) -> None:
    """The operands are still being written when the call is made."""
    want, queued, source = Call(call), Call(call), Call(call)
    want.run()
    inputs = [(x, y) for (_, x), (_, y) in zip(queued.tensors(), source.tensors(), strict=True)]
    for x, _ in inputs:
        x.view(torch.uint8).zero_()
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(CYCLES // 10)
        for x, y in inputs:
            x.copy_(y)
        queued.run()
    side.synchronize()
    queued.assert_wrote_like(want)


@each_call
def test_another_device(call: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    want = Call(call)
    want.run()
    with torch.device("cuda:1"):
        there = Call(call)
    assert torch.cuda.current_device() == 0
    there.run()
    assert torch.cuda.current_device() == 0
    torch.cuda.synchronize("cuda:1")
    for (x, _), (y, _) in zip(there.written, want.written, strict=True):
        assert x.device.index == 1
        assert torch.equal(x.cpu().view(torch.uint8), y.cpu().view(torch.uint8))
