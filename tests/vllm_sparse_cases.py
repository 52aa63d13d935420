"""What test_sparse_vllm.py runs inside a process with vLLM: its sparse attention interfaces."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from indexer_cases import flat_case, paged_case

from mate_plugin.kernels.indexer_cache import quant_and_write_k

H, D, RANK, ROPE, BLOCK, TOPK = 4, 128, 32, 16, 16, 8


def slots() -> None:
    """vLLM's own wrappers reach our functions, with its argument forms."""
    from vllm.utils import deep_gemm

    from mate_plugin.indexer import vllm_scores

    vllm_scores.fill()
    for lens in ([100, 0, 65], [[3, 100], [0, 0], [65, 64]]):
        next_n = 2 if isinstance(lens[0], list) else 1
        case = paged_case(1, lens, next_n, heads=3, depth=128)
        plan = deep_gemm.get_paged_mqa_logits_metadata(case.context_lens, 64, 5)
        assert plan.shape == (deep_gemm._paged_mqa_logits_schedule_slots(5, next_n) + 1, 2)
        arguments = (case.cache, case.weights, case.context_lens, case.block_table, plan)
        found = deep_gemm.fp8_fp4_paged_mqa_logits(
            (case.q, None), *arguments, case.max_context_len, clean_logits=True
        )
        _same(found, case.reference())
        for bad in ({"q": (case.q, case.weights)}, {"indices": case.context_lens}):
            q = bad.pop("q", (case.q, None))
            with pytest.raises(NotImplementedError, match=re.escape("expected None")):
                deep_gemm.fp8_fp4_paged_mqa_logits(
                    q, *arguments, case.max_context_len, clean_logits=True, **bad
                )
    flat = flat_case(2, rows=5, tokens=70, heads=3, depth=128)
    found = deep_gemm.fp8_fp4_mqa_logits(
        (flat.q, None), flat.kv, flat.weights, flat.start, flat.end, clean_logits=True
    )
    _same(found, flat.reference())


def _same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)


def seam_on_gpus() -> None:
    """On NVIDIA the slots stay as they are until asked for; on MUSA they want kernels."""
    from vllm.platforms import current_platform

    from mate_plugin.indexer import vllm_scores
    from mate_plugin.layers import vllm_hooks

    hooks = {hook.name: hook for hook in vllm_hooks.install()}
    assert not hooks[vllm_scores.NAME].wanted
    type(current_platform).device_type = "musa"
    hooks = {hook.name: hook for hook in vllm_hooks.install()}
    assert hooks[vllm_scores.NAME].wanted
    assert not hooks[vllm_scores.NAME].installed
    assert "libmate_musa.so is missing" in hooks[vllm_scores.NAME].reason
    assert hooks["vllm.moe"].reason == "left to vLLM on musa (musa.moe: false)"


def step(counts: list[int], lens: list[int]):
    """vLLM's metadata of a batch whose blocks are shuffled, as our builder turns it."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    from mate_plugin.indexer.vllm_attention import backend_classes

    starts = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    blocks = [-(-length // BLOCK) for length in lens]
    free = torch.randperm(sum(blocks)).tolist()
    table = torch.full((len(lens), max(blocks)), -1, dtype=torch.int32)
    for request, count in enumerate(blocks):
        for column in range(count):
            table[request, column] = free.pop()
    slots = [
        int(table[request, t // BLOCK]) * BLOCK + t % BLOCK
        for request, (count, length) in enumerate(zip(counts, lens, strict=True))
        for t in range(length - count, length)
    ]
    common = CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor(lens, dtype=torch.int32),
        num_reqs=len(lens),
        num_actual_tokens=sum(counts),
        max_query_len=max(counts),
        max_seq_len=max(lens),
        block_table_tensor=table,
        slot_mapping=torch.tensor(slots),
    )
    builder_cls = backend_classes()["MateSparseMLABackend"].get_builder_cls()
    builder = builder_cls(SimpleNamespace(block_size=BLOCK), ["layer"], None, torch.device("cpu"))
    return builder.build(0, common_attn_metadata=common), sum(blocks)


def metadata() -> None:
    """All tokens of a mixed batch are handed over as ones for the sparse path."""
    built, _ = step([1, 3, 0, 2], [5, 3, 17, 40])
    assert built.request_of_token.tolist() == [0, 1, 1, 1, 3, 3]
    assert built.request_of_token.dtype == torch.int32
    assert (built.num_decodes, built.num_decode_tokens) == (4, 6)
    assert (built.num_prefills, built.num_actual_tokens) == (0, 6)


def indexer() -> None:
    """The exchanged SparseAttnIndexer writes keys and selects, through its op."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.forward_context import set_forward_context
    from vllm.model_executor.layers.sparse_attn_indexer import SparseAttnIndexer

    from mate_plugin import report
    from mate_plugin.indexer import vllm_indexer

    cls = vllm_indexer.indexer_class()
    counts, lens = [1, 20, 0, 4], [33, 20, 7, 50]
    built, num_blocks = step(counts, lens)
    tokens = sum(counts)
    cache = SimpleNamespace(prefix="indexer.k_cache")
    buffer = torch.full((tokens + 3, TOPK), 7, dtype=torch.int32)
    config = VllmConfig()
    with set_current_vllm_config(config):
        arguments = (cache, D, "ue8m0", TOPK, D, 64, 64, buffer)
        op = SparseAttnIndexer(*arguments)
        assert type(op) is cls
        assert cache.get_attn_backend().get_name() == "MATE_CPU_INDEXER"
        with pytest.raises(
            ValueError,
            match=re.escape("use_fp4_cache: mate-plugin serves False on a CPU, got True"),
        ):
            SparseAttnIndexer(*arguments, use_fp4_cache=True)
    config.compilation_config.static_forward_context[cache.prefix] = cache

    # Keys of earlier steps are in the cache already; this step writes the last of each request.
    keys = [torch.randn(length, D).to(torch.bfloat16) for length in lens]
    cache.kv_cache = torch.zeros(num_blocks, BLOCK, D + 4, dtype=torch.uint8)
    earlier, _ = _slots(built, lens)
    quant_and_write_k(torch.cat(keys), cache.kv_cache, earlier)
    new = torch.cat([k[len(k) - n :] for k, n in zip(keys, counts, strict=True)])
    for t in built.slot_mapping.tolist():
        block = cache.kv_cache[t // BLOCK].flatten()
        block[t % BLOCK * D : (t % BLOCK + 1) * D] = 0x7F  # NaN until it is written
    q, q_scale = vllm_indexer.quantise_queries(torch.randn(tokens * H, D), D, use_ue8m0=True)
    q, weights = q.view(tokens, H, D), torch.rand(tokens, H) * q_scale.view(tokens, H)
    hidden = torch.empty(tokens, 1)
    with set_forward_context(None, config):
        assert op(hidden, q, new, weights) is buffer
    assert bool((buffer == 7).all()), "nothing is selected while there is no batch"
    with set_forward_context({cache.prefix: built}, config):
        op(hidden, q, new, weights)
    assert bool((buffer[tokens:] == 7).all())
    row = 0
    for request, count in enumerate(counts):
        scale = torch.exp2((keys[request].float().abs().amax(1) / 448).log2().ceil())
        rounded = (keys[request].float() / scale[:, None]).to(torch.float8_e4m3fn).double()
        for i in range(count):
            seen = lens[request] - count + i + 1
            dots = (q[row].double() @ rounded[:seen].T).relu()
            scores = (weights[row].double() @ dots) * scale[:seen].double()
            # Scores of 0, where no head agrees, are ties: the first tokens win.
            best = scores.sort(descending=True, stable=True)[1][:TOPK].sort()[0].tolist()
            assert buffer[row].tolist() == best + [-1] * (TOPK - len(best)), (request, i)
            row += 1
    (count,) = [one for one in report.layers() if one.kind == "indexer"]
    assert (count.shape, count.built, count.calls) == ("128 top 8", 1, 1)
    assert "indexer 128 top 8: " in report.explain()
    assert "indexer logits: at most 0.0 MiB at once" in report.explain()


def _slots(built, lens: list[int]) -> tuple[torch.Tensor, list[int]]:
    slots = [
        int(built.block_table[request, t // BLOCK]) * BLOCK + t % BLOCK
        for request, length in enumerate(lens)
        for t in range(length)
    ]
    return torch.tensor(slots), slots


def attention() -> None:
    """The impl stores latents and attends to the selected ones, whatever the batch is made of."""
    from mate_plugin.indexer.vllm_attention import backend_classes

    backend = backend_classes()["MateSparseMLABackend"]
    counts, lens = [1, 20, 0, 4], [33, 20, 7, 50]
    built, num_blocks = step(counts, lens)
    tokens = sum(counts)
    indices = torch.full((tokens + 2, TOPK), -1, dtype=torch.int32)
    arguments = {
        "num_heads": H,
        "head_size": RANK + ROPE,
        "scale": 0.2,
        "num_kv_heads": 1,
        "alibi_slopes": None,
        "sliding_window": None,
        "kv_cache_dtype": "auto",
        "logits_soft_cap": None,
        "attn_type": "decoder",
        "kv_sharing_target_layer_name": None,
        "topk_indices_buffer": indices,
        "kv_lora_rank": RANK,
    }
    impl = backend.get_impl_cls()(**arguments)
    for name, value in (("kv_cache_dtype", "fp8"), ("sliding_window", 128)):
        with pytest.raises(ValueError, match=re.escape(f"{name}: sparse MLA on a CPU serves")):
            backend.get_impl_cls()(**arguments | {name: value})
    cache = torch.full((num_blocks, BLOCK, RANK + ROPE), torch.nan, dtype=torch.bfloat16)
    rows = [torch.randn(length, RANK + ROPE).to(torch.bfloat16) for length in lens]
    kv = torch.cat(rows)
    slots, _ = _slots(built, lens)
    impl.do_kv_cache_update(kv[:, :RANK], kv[:, None, RANK:], cache, slots, "auto", None)
    q = torch.randn(tokens, H, RANK + ROPE).to(torch.bfloat16)
    row, expected = 0, torch.zeros(tokens, H, RANK, dtype=torch.float64)
    for request, count in enumerate(counts):
        for i in range(count):
            seen = lens[request] - count + i + 1
            chosen = torch.randperm(seen)[:TOPK].sort()[0]
            indices[row, : len(chosen)] = chosen
            keys = rows[request][chosen].double()
            weights = (q[row].double() @ keys.T * 0.2).softmax(1)
            expected[row] = weights @ keys[:, :RANK]
            row += 1
    for query in (q, (q[..., :RANK], q[..., RANK:])):
        out, lse = impl.forward_mqa(query, cache, built, None)
        assert lse is None
        torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)


def platform() -> None:
    """Names and refusals of the platform."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.selector import AttentionSelectorConfig

    from mate_plugin.indexer import vllm_platform

    assert vllm_platform.is_active()
    assert current_platform.is_cpu()
    assert vllm_platform.block_size(None) == 64
    assert vllm_platform.block_size(16) == 16
    with pytest.raises(
        ValueError, match=re.escape("--block-size: expected a power of two of at least 16, got 48")
    ):
        vllm_platform.block_size(48)
    # A sparse model that nobody served keeps vLLM's own refusal.
    question = AttentionSelectorConfig(576, torch.bfloat16, "auto", 64, True, use_sparse=True)
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        with pytest.raises(
            NotImplementedError, match=re.escape("Sparse Attention is not supported on CPU")
        ):
            current_platform.get_attn_backend_cls(None, question)
        dense = AttentionSelectorConfig(576, torch.bfloat16, "auto", 16, True)
        assert "MLA" in current_platform.get_attn_backend_cls(None, dense).upper()


def queries() -> None:
    """The stand-in for vLLM's quantisation, and what it refuses."""
    from vllm.model_executor.models import deepseek_v2

    from mate_plugin.indexer import vllm_sparse

    vllm_sparse.fill()
    x = torch.randn(6, 256)
    q, scale = deepseek_v2.per_token_group_quant_fp8(
        x, 128, column_major_scales=False, use_ue8m0=True
    )
    groups = x.view(6, 2, 128)
    expected = torch.exp2((groups.abs().amax(2) / 448).log2().ceil())
    assert torch.equal(scale, expected)
    codes = (groups / expected[..., None]).to(torch.float8_e4m3fn).view(6, 256)
    assert torch.equal(q.float(), codes.float())
    for wrong in ({"column_major_scales": True}, {"dtype": torch.float8_e5m2}, {"eps": 1e-4}):
        with pytest.raises(NotImplementedError, match=re.escape(next(iter(wrong)))):
            deepseek_v2.per_token_group_quant_fp8(x, 128, **wrong)
