"""What test_sparse.py runs inside a process with SGLang: its DSA indexer and attention backend."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from indexer_cases import flat_case, paged_case
from layer_oracle import dequantise, quantise
from sglang_batches import Scene, part_of, scene
from sglang_layers import publish

from mate_plugin.kernels.reference import indexer as oracle

HEADS, D, ROPE, TOPK, PAGE = 3, 128, 64, 8, 64
RANK = 32
BF16 = torch.bfloat16


def resolvers() -> None:
    """Our functions come out of the resolvers, also where they were bound before."""
    from sglang.srt.layers.attention.dsa import dsa_indexer, utils

    from mate_plugin.indexer import sglang_scores
    from mate_plugin.kernels import library
    from mate_plugin.kernels.mqa_logits import get_paged_mqa_logits_metadata

    assert utils.resolve_fp8_paged_mqa_logits_fn() is sglang_scores.paged_mqa_logits
    assert utils.resolve_fp8_mqa_logits_fn() is sglang_scores.mqa_logits
    assert utils.resolve_paged_mqa_logits_metadata_fn() is get_paged_mqa_logits_metadata
    assert utils.resolve_num_sms() == library.torch_threads()
    for name in sglang_scores.SLOTS:
        assert getattr(dsa_indexer, name) is getattr(utils, name), name


def scores() -> None:
    """The functions with SGLang's arguments, a schedule given or not."""
    from sglang.srt.layers.attention.dsa import utils

    case = paged_case(1, [100, 0, 65], heads=HEADS, depth=D)
    lens = case.context_lens.view(-1, 1)
    plan = utils.resolve_paged_mqa_logits_metadata_fn()(lens, PAGE, utils.resolve_num_sms())
    for schedule in (plan, None):
        found = utils.resolve_fp8_paged_mqa_logits_fn()(
            case.q,
            case.cache,
            case.weights,
            lens,
            case.block_table,
            schedule,
            case.max_context_len,
            clean_logits=True,
        )
        same(found, case.reference())
    flat = flat_case(2, rows=5, tokens=70, heads=HEADS, depth=D)
    found = utils.resolve_fp8_mqa_logits_fn()(
        flat.q, flat.kv, flat.weights, flat.start, flat.end, clean_logits=True
    )
    same(found, flat.reference())


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)


def forward_mode(name: str) -> Any:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return ForwardMode[name]


def inside(backend: Any) -> Any:
    """SGLang's context of one forward."""
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

    return forward_context(ForwardContext(attn_backend=backend))


def paged_topk() -> None:
    """SGLang's own path for decoding, whole and cut into parts of a few requests."""
    from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer

    from mate_plugin.indexer.sglang_mla import metadata_class
    from mate_plugin.indexer.sglang_step import build_step

    publish()
    lens = [100, 3, 65, 8, 200]
    case = paged_case(1, lens, heads=HEADS, depth=D)
    made = scene(forward_mode("DECODE"), lens)
    step = build_step(made.forward_batch, made.req_to_token, PAGE)
    step.block_table = case.block_table
    pool = SimpleNamespace(
        index_page_size=PAGE,
        get_index_k_with_scale_buffer=lambda layer_id: case.cache.flatten(1) * (layer_id == 5),
    )
    expected = oracle.index_topk(
        [row[:length] for row, length in zip(case.reference(), lens, strict=True)], TOPK
    )
    assert -1 in expected[1]
    indexer = real_indexer()
    for at_once in (1 << 30, 2):
        indexer.sm_count = at_once
        with inside(SimpleNamespace(token_to_kv_pool=pool)):
            found = Indexer._get_topk_paged(
                indexer,
                made.forward_batch,
                5,
                case.q.squeeze(1),
                case.weights.unsqueeze(-1),
                metadata_class()(step, PAGE),
            )
        assert found.dtype == torch.int32
        assert torch.equal(found, expected)


def real_indexer() -> Any:
    """SGLang's Indexer with random weights of 16 bits."""
    from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer

    torch.manual_seed(0)
    indexer = Indexer(
        hidden_size=96,
        index_n_heads=HEADS,
        index_head_dim=D,
        rope_head_dim=ROPE,
        index_topk=TOPK,
        q_lora_rank=48,
        max_position_embeddings=512,
        rope_theta=10000.0,
        layer_id=0,
        scale_fmt="ue8m0",
    )
    for name, parameter in indexer.named_parameters():
        if "norm" not in name:
            parameter.data = torch.randn(parameter.shape) / math.sqrt(parameter.shape[-1])
            parameter.data = parameter.data.to(BF16)
    return indexer


def runner(made: Scene, cache_dtype: torch.dtype = BF16, **changes: Any) -> Any:
    """What an attention backend reads of SGLang's ModelRunner, with its real cache."""
    from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool

    pool = DSATokenToKVPool(
        size=(made.pages - 1) * PAGE,
        page_size=PAGE,
        kv_lora_rank=RANK,
        dtype=BF16,
        qk_rope_head_dim=16,
        layer_num=1,
        device="cpu",
        index_head_dim=D,
        enable_memory_saver=False,
        kv_cache_dim=RANK + 16,
    )
    fields = {
        "use_mla_backend": True,
        "kv_cache_dtype": cache_dtype,
        "req_to_token_pool": SimpleNamespace(req_to_token=made.req_to_token),
        "token_to_kv_pool": pool,
        "page_size": PAGE,
    }
    return SimpleNamespace(**fields | changes)


def mate_dsa(model_runner: Any) -> Any:
    """The backend out of SGLang's registry."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    return ATTENTION_BACKENDS["mate_dsa"](model_runner)


def pow2_rows(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 rows of ``k[T, D]`` and their power-of-two scales."""
    scale = torch.exp2((k.float().abs().amax(1) / 448).clamp(min=1e-10).log2().ceil())
    return (k.float() / scale[:, None]).to(torch.float8_e4m3fn), scale


def indexer() -> None:
    """Prompts in two parts and then a token each: keys are written, the best are selected."""
    publish()
    lens = [70, 5, 130]
    made = scene(forward_mode("DECODE"), lens)
    backend = mate_dsa(runner(made))
    layer = real_indexer()
    x = torch.randn(sum(lens), 96).to(BF16)
    lora = torch.randn(sum(lens), 48).to(BF16)
    first = [0, lens[0], lens[0] + lens[1]]
    codes: list[torch.Tensor] = [torch.empty(0)] * 3
    steps = (
        ("EXTEND", [30, 2, 65], [30, 2, 65]),
        ("EXTEND", [69, 4, 129], [39, 2, 64]),
        ("DECODE", lens, None),
    )
    for mode, until, counts in steps:
        step = part_of(made, forward_mode(mode), until, counts)
        pick = [first[r] + t - 1 for r, t in step.tokens()]
        positions = torch.tensor([t - 1 for _, t in step.tokens()])
        backend.init_forward_metadata(step.forward_batch)
        with inside(backend):
            found = layer(x[pick], lora[pick], positions, step.forward_batch, layer_id=0)
            q, k, _ = layer._get_q_k_bf16(lora[pick], x[pick], positions, False, None)
        gates = (x[pick] @ layer.weights_proj.weight.T).double() * HEADS**-0.5
        # What is selected depends on all keys so far, this step's included.
        for r in range(3):
            own = torch.stack([k[i] for i, (owner, _) in enumerate(step.tokens()) if owner == r])
            codes[r] = torch.cat([codes[r].view(-1, D), own.float()])
        for i, (r, length) in enumerate(step.tokens()):
            rounded, scale = pow2_rows(codes[r][:length])
            q_codes, q_scale = pow2_rows(q[i])
            weights = gates[i] * q_scale.double() * D**-0.5
            logits = oracle.scores(q_codes[None], rounded, scale, weights[None])[0]
            expect_best(found[i], logits)


def expect_best(found: torch.Tensor, logits: torch.Tensor) -> None:
    """Ascending positions of the largest logits; those at the border may be as good as equal."""
    count = min(TOPK, len(logits))
    chosen = found[:count].long()
    assert found[count:].tolist() == [-1] * (TOPK - count)
    assert bool((chosen[1:] > chosen[:-1]).all())
    assert bool((chosen >= 0).all())
    border = logits.sort(descending=True).values[count - 1]
    assert bool((logits[chosen] >= border - 1e-5 * logits.abs().max()).all())


def rotation() -> None:
    """rotate_activation is a Hadamard transform, also where SGLang's indexer has bound it."""
    from sglang.srt.layers.attention.dsa import dsa_indexer

    for size in (1, 2, 64, 128):
        rows = torch.randn(3, 2, size).to(BF16)
        naive = torch.tensor(
            [[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
        )
        expected = rows.double() @ naive.double() * size**-0.5
        found = dsa_indexer.rotate_activation(rows)
        assert found.dtype == BF16
        torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=1e-6)
    for size in (0, 96):
        message = f"x: expected a power of two as the last dimension, got {size}"
        with pytest.raises(ValueError, match=message):
            dsa_indexer.rotate_activation(torch.zeros(2, size))


def keys_without_heads() -> None:
    """Queries with heads and keys without come back in their shapes, each rotated."""
    from sglang.srt.layers.rotary_embedding import get_rope

    from mate_plugin.indexer.sglang_indexer import KeysWithoutHeads

    publish()
    positions = torch.tensor([0, 3, 17, 200])
    for neox in (True, False):
        rope = KeysWithoutHeads(get_rope(ROPE, ROPE, 512, 10000, is_neox_style=neox))
        q, k = torch.randn(4, HEADS, ROPE), torch.randn(4, ROPE)
        found_q, found_k = rope(positions, q.clone(), k.clone())
        angles = positions.double()[:, None] * 10000.0 ** (-torch.arange(0, ROPE, 2) / ROPE)
        for rows, found in ((q, found_q), (k[:, None], found_k[:, None])):
            rows = rows.double()
            real, imaginary = rows.chunk(2, -1) if neox else (rows[..., ::2], rows[..., 1::2])
            turned = torch.complex(real, imaginary) * torch.polar(
                torch.ones_like(angles), angles
            ).unsqueeze(1)
            both = (turned.real, turned.imag)
            expected = torch.cat(both, -1) if neox else torch.stack(both, -1).flatten(-2)
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
        assert (found_q.shape, found_k.shape) == (q.shape, k.shape)


def indexer_refusals() -> None:
    publish()
    made = scene(forward_mode("DECODE"), [3])
    backend = mate_dsa(runner(made))
    backend.init_forward_metadata(made.forward_batch)
    metadata = backend.get_indexer_metadata(0, made.forward_batch)
    assert backend.get_indexer_metadata(1, made.forward_batch) is metadata
    with pytest.raises(NotImplementedError, match="page_table_1: mate_dsa keeps pages of 64"):
        metadata.get_page_table_1()
    with pytest.raises(NotImplementedError, match=r"topk_transform: .* got \['ks'\]"):
        metadata.topk_transform(torch.zeros(1, 64), 4, ks=None)
    layer = real_indexer()
    layer.num_local_tokens = 4
    with inside(backend), pytest.raises(ValueError, match=r"num_local_tokens: .* got 4"):
        layer(torch.zeros(1, 96), torch.zeros(1, 48), None, made.forward_batch, layer_id=0)


def attention() -> None:
    """Latents are stored; each token attends to the selected ones, or to all before it."""
    publish()
    lens, counts = [70, 5, 130], [20, 5, 1]
    width, scaling = RANK + 16, 0.2
    layer = SimpleNamespace(
        tp_q_head_num=HEADS, qk_head_dim=width, v_head_dim=RANK, layer_id=0, scaling=scaling
    )
    latents = [torch.randn(length, width).to(BF16) for length in lens]
    for mode, new in (("EXTEND", counts), ("DECODE", None)):
        made = scene(forward_mode(mode), lens, new)
        backend = mate_dsa(runner(made))
        cache = backend.token_to_kv_pool.get_key_buffer(0)
        cache.fill_(torch.nan)
        for rows, values, count in zip(made.rows, latents, made.counts, strict=True):
            cache.view(-1, width)[rows[:-count]] = values[:-count]
        fresh = torch.cat([v[-n:] for v, n in zip(latents, made.counts, strict=True)])
        tokens = made.tokens()
        q = torch.randn(len(tokens), HEADS * width).to(BF16)
        backend.init_forward_metadata(made.forward_batch)
        forward = backend.forward_decode if new is None else backend.forward_extend
        indices = torch.full((len(tokens), TOPK), -1, dtype=torch.int32)
        for i, (_, seen) in enumerate(tokens):
            chosen = torch.randperm(seen)[:TOPK].sort().values
            indices[i, : len(chosen)] = chosen
        for selected in (indices, None):
            key, value = fresh.unsqueeze(1), fresh[:, None, :RANK]
            found = forward(q, key, value, layer, made.forward_batch, topk_indices=selected)
            assert found.shape == (len(tokens), HEADS * RANK)
            for i, (r, seen) in enumerate(tokens):
                at = torch.arange(seen) if selected is None else selected[i][selected[i] >= 0]
                keys = latents[r][at.long()].double()
                chances = (q[i].view(HEADS, width).double() @ keys.T * scaling).softmax(1)
                expected = (chances @ keys[:, :RANK]).flatten()
                torch.testing.assert_close(found[i].double(), expected, rtol=1e-2, atol=1e-2)
    with pytest.raises(NotImplementedError, match="mate_dsa does not serve k_rope, q_rope"):
        backend.forward_decode(q, None, None, layer, made.forward_batch, q_rope=q, k_rope=q)


def backend_refusals() -> None:
    """Models and caches that mate_dsa does not serve are refused in one readable line."""
    publish()
    made = scene(forward_mode("DECODE"), [3])
    mate_dsa(runner(made))
    mate_dsa(runner(made, cache_dtype=torch.float16))
    for bad, said in (
        (
            runner(made, use_mla_backend=False),
            "--attention-backend mate_dsa: serves models with MLA, got one without;"
            " try torch_native",
        ),
        (
            runner(made, cache_dtype=torch.float8_e4m3fn),
            "--kv-cache-dtype: mate_dsa serves bfloat16 and float16, got torch.float8_e4m3fn",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            mate_dsa(bad)


def absorbed() -> None:
    """w_kc and w_vc are the FP8 weight's exact values, rounded once; other weights stay."""
    from mate_plugin.indexer.sglang_sparse import absorb_exactly

    nope, value, heads = 24, 40, 5
    weight, scale = quantise(torch.randn(heads * (nope + value), 136))
    exact = dequantise(weight, scale).view(heads, nope + value, 136)

    def attention_of(weight: torch.Tensor) -> SimpleNamespace:
        projection = SimpleNamespace(weight=weight, weight_scale_inv=scale)
        return SimpleNamespace(
            kv_b_proj=projection, qk_nope_head_dim=nope, v_head_dim=value, w_kc=None, w_vc=None
        )

    kinds = [attention_of(weight), attention_of(exact.to(BF16).flatten(0, 1)), SimpleNamespace()]
    layers = [SimpleNamespace(self_attn=attention) for attention in kinds]
    layers.append(SimpleNamespace())
    absorb_exactly(None, SimpleNamespace(model=SimpleNamespace(layers=layers)))
    draft = attention_of(weight)
    decoder = SimpleNamespace(decoder=SimpleNamespace(self_attn=draft))
    absorb_exactly(None, SimpleNamespace(model=decoder), is_nextn=True)
    rounding = {"rtol": 2**-8, "atol": 0}
    for attention in (kinds[0], draft):
        assert (attention.w_kc.dtype, attention.w_vc.dtype) == (BF16, BF16)
        torch.testing.assert_close(attention.w_kc.double(), exact[:, :nope], **rounding)
        expected = exact[:, nope:].transpose(1, 2)
        torch.testing.assert_close(attention.w_vc.double(), expected, **rounding)
    assert kinds[1].w_kc is None
