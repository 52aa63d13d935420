"""The step that our attention backends make of SGLang's ForwardBatch, against loops over tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_batches import Mode, Scene, scene

from mate_plugin.indexer.sglang_step import build_step


@st.composite
def scenes(draw) -> Scene:
    decode = draw(st.booleans())
    lens = draw(st.lists(st.integers(1, 150), min_size=1, max_size=5))
    counts = None if decode else [draw(st.integers(1, length)) for length in lens]
    page_size, padding = draw(st.sampled_from([16, 64])), draw(st.integers(0, 3))
    mode = Mode("decode" if decode else "extend")
    return scene(mode, lens, counts, page_size, padding, draw(st.integers(0, 9)))


@settings(max_examples=80, deadline=None)
@given(scenes())
def test_says_of_each_token_what_a_loop_says(made):
    step = build_step(made.forward_batch, made.req_to_token, made.page_size)
    size, tokens = made.page_size, made.tokens()
    padding = made.forward_batch.out_cache_loc.numel() - len(tokens)
    starts = [0]
    for count in made.counts:
        starts.append(starts[-1] + count)
    assert step.query_start_loc.tolist() == starts
    assert step.seq_lens.tolist() == [len(rows) for rows in made.rows]
    assert step.request_of_token.tolist() == [r for r, _ in tokens] + [-1] * padding
    assert step.seen.tolist() == [seen for _, seen in tokens] + [0] * padding
    assert step.new_tokens == made.counts
    written = [made.rows[r][seen - 1] for r, seen in tokens]
    assert step.slot_mapping.tolist() == written + [0] * padding
    for request, rows in enumerate(made.rows):
        table = step.block_table[request].tolist()
        assert [table[t // size] * size + t % size for t in range(len(rows))] == rows
    dtypes = {
        "query_start_loc": torch.int32,
        "seq_lens": torch.int32,
        "block_table": torch.int32,
        "slot_mapping": torch.int64,
        "request_of_token": torch.int32,
        "seen": torch.int32,
    }
    for name, dtype in dtypes.items():
        found = getattr(step, name)
        assert (name, found.dtype, found.is_contiguous()) == (name, dtype, True)


@pytest.mark.parametrize("padding", [0, 2])
def test_a_step_without_requests_has_no_tokens(padding):
    made = scene(Mode("idle"), [], padding=padding)
    step = build_step(made.forward_batch, made.req_to_token, made.page_size)
    assert step.query_start_loc.tolist() == [0]
    assert step.request_of_token.tolist() == [-1] * padding
    assert step.seen.tolist() == [0] * padding
    assert step.block_table.shape == (0, 0)
