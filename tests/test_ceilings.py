"""Peaks that benchmarks divide by: there are some, and none of what an instance cannot do."""

from __future__ import annotations

from mate_plugin.kernels import ceilings, library

WITH_PAIRS, WITH_TILES = ("avx512_bf16", "amx"), ("amx",)


def test_peaks_are_those_of_the_instruction_set_in_use() -> None:
    isa = library.isa()
    assert ceilings.fma_peak(repeats=1) > 0
    assert ceilings.read_bandwidth(repeats=1, num_bytes=1 << 20) > 0
    for peak, having in (
        (ceilings.bf16_peak(repeats=1), WITH_PAIRS),
        (ceilings.tile_peak(repeats=1), WITH_TILES),
    ):
        assert peak is None if isa not in having else peak is not None
        assert peak is None or peak > 0
