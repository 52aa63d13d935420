"""SGLang's DSA indexers, cache and backend on the simulated device, and what they should select."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import deep_gemm
import torch

from mate_plugin.kernels.reference import indexer as oracle
from mate_plugin.kernels.reference.pieces import per_token_group_quant_fp8

HIDDEN, LORA, HEADS, DEPTH, ROPE, TOPK, PAGE = 64, 32, 4, 128, 64, 16, 64
LATENT, ROTARY = 512, 64
CONTEXT, BASE = 256, 10000.0
PAGES = 36
# DeepSeek's rotary class, at a factor that leaves the angles as they are.
YARN = {"rope_type": "deepseek_yarn", "factor": 1.0, "original_max_position_embeddings": CONTEXT}
# Most that FP8 operands and bfloat16 before them change a score by, of the largest it could have.
FP8_NOISE = 0.01


def publish() -> None:
    """Let layers be made in this process: one rank, selection in plain torch."""
    from sglang.srt.runtime_context import get_context, get_parallel

    get_context().override_server_args(
        device="musa",
        page_size=PAGE,
        dsa_topk_backend="torch",
        dsa_prefill_backend="tilelang",
        dsa_decode_backend="tilelang",
    ).install()
    get_parallel().override_permanently(attn_dcp_rank=0)
    # Triton's interpreter rounds FP8 otherwise than hardware; the stores and loads are its own.
    from sglang.kernels.ops.quantization import act_quant_triton

    act_quant_triton.act_quant = act_quant


def act_quant(
    x: torch.Tensor, block_size: int, scale_fmt: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """SGLang's ``act_quant`` in plain torch."""
    assert x.is_contiguous()
    ue8m0 = scale_fmt is not None
    codes, scale = per_token_group_quant_fp8(x.cpu(), block_size, ue8m0=ue8m0, least=1e-4)
    return codes.to(x.device), scale.to(x.device)


def make_indexer(layer: int) -> Any:
    """An ``Indexer`` with random weights, as SGLang makes it on the device."""
    from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("musa"):
        indexer = Indexer(
            hidden_size=HIDDEN,
            index_n_heads=HEADS,
            index_head_dim=DEPTH,
            rope_head_dim=ROPE,
            index_topk=TOPK,
            q_lora_rank=LORA,
            max_position_embeddings=CONTEXT,
            rope_theta=BASE,
            layer_id=layer,
            scale_fmt="ue8m0",
            rope_scaling=YARN,
            is_neox_style=False,
        )
    torch.set_default_dtype(before)
    for name, weight in indexer.named_parameters():
        values = torch.randn(weight.shape) * (1.0 if "norm" in name else weight.shape[-1] ** -0.5)
        weight.data.copy_(values + (name == "k_norm.weight"))
    return indexer


class Dsa:
    """Indexers of ``layers`` layers on one cache and one backend of SGLang, and the oracle.

    Request r of ``requests`` has row r + 1 of the token table, on pages in a random order.
    """

    def __init__(self, layers: int = 1, requests: int = 2) -> None:
        from sglang.srt.layers.attention.dsa_backend import DeepseekSparseAttnBackend
        from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool, ReqToTokenPool

        torch.manual_seed(0)
        publish()
        self.indexers = [make_indexer(layer) for layer in range(layers)]
        self.pool = DSATokenToKVPool(
            size=(PAGES - 1) * PAGE,
            page_size=PAGE,
            kv_lora_rank=LATENT,
            dtype=torch.bfloat16,
            qk_rope_head_dim=ROTARY,
            layer_num=layers,
            device="musa",
            index_head_dim=DEPTH,
            enable_memory_saver=False,
            kv_cache_dim=LATENT + ROTARY,
        )
        requests_pool = ReqToTokenPool(requests, CONTEXT, "musa", False)
        pages = 1 + torch.randperm(PAGES - 1)[: requests * CONTEXT // PAGE].view(requests, -1, 1)
        self.table = (pages * PAGE + torch.arange(PAGE)).reshape(requests, CONTEXT).int()
        requests_pool.req_to_token[1:] = self.table.to("musa")
        config = SimpleNamespace(architectures=["DeepseekV32ForCausalLM"], index_topk=TOPK)
        self.backend = DeepseekSparseAttnBackend(
            SimpleNamespace(
                device="musa",
                page_size=PAGE,
                is_draft_worker=False,
                hisparse_coordinator=None,
                kv_cache_dtype=torch.bfloat16,
                token_to_kv_pool=self.pool,
                req_to_token_pool=requests_pool,
                model_config=SimpleNamespace(
                    hf_config=config,
                    context_len=CONTEXT,
                    num_attention_heads=HEADS,
                    qk_nope_head_dim=DEPTH,
                    kv_lora_rank=LATENT,
                    qk_rope_head_dim=ROTARY,
                ),
            )
        )
        self.seen: dict[int, int] = dict.fromkeys(range(requests), 0)
        # Inputs of every token so far, by layer and request.
        self.inputs: dict[tuple[int, int], list[torch.Tensor]] = {}

    def batch(self, mode: str, new: dict[int, int]) -> SimpleNamespace:
        """SGLang's ForwardBatch in which each request gets ``new`` tokens more."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        requests, counts = list(new), list(new.values())
        before = [self.seen[request] for request in requests]
        for request, count in new.items():
            self.seen[request] += count
        lens = torch.tensor([self.seen[request] for request in requests])
        spans = [torch.arange(first, first + n) for first, n in zip(before, counts, strict=True)]
        slots = [self.table[r, span] for r, span in zip(requests, spans, strict=True)]
        # Drafts are not part of the lengths that SGLang counts from.
        known = torch.tensor(before) if mode == "TARGET_VERIFY" else lens
        return SimpleNamespace(
            forward_mode=ForwardMode[mode],
            batch_size=len(requests),
            seq_lens=known.to("musa"),
            seq_lens_cpu=known,
            seq_lens_sum=int(known.sum()),
            req_pool_indices=torch.tensor(requests, device="musa") + 1,
            extend_seq_lens=torch.tensor(counts, device="musa"),
            extend_seq_lens_cpu=counts,
            extend_prefix_lens_cpu=before,
            extend_num_tokens=sum(counts),
            out_cache_loc=torch.cat(slots).long().to("musa"),
            positions=torch.cat(spans).to("musa"),
            global_num_tokens_cpu=None,
            attn_cp_metadata=None,
            spec_info=None,
            get_max_chunk_capacity=lambda: 1 << 20,
            requests=[r for r, count in new.items() for _ in range(count)],
        )

    def start(self, batch: SimpleNamespace) -> None:
        """Prepare the backend for a step."""
        self.backend.init_forward_metadata(batch)

    def select(self, batch: SimpleNamespace, layer: int = 0, **options: Any) -> Any:
        """What the layer's indexer returns for random hidden states, and keep those."""
        from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

        tokens = batch.positions.numel()
        x = torch.randn(tokens, HIDDEN).to(torch.bfloat16)
        lora = torch.randn(tokens, LORA).to(torch.bfloat16)
        self.lora = lora
        for row, request in enumerate(batch.requests):
            self.inputs.setdefault((layer, request), []).append(x[row])
        inputs = (x.to("musa"), lora.to("musa"), batch.positions, batch, layer)
        with forward_context(ForwardContext(attn_backend=self.backend)):
            return self.indexers[layer](*inputs, **options)

    def step(self, mode: str, new: dict[int, int], layer: int = 0) -> torch.Tensor:
        """Run one layer over a step of its own and check what it selects."""
        batch = self.batch(mode, new)
        self.start(batch)
        deep_gemm.calls.clear()
        selected = self.select(batch, layer)
        self.check(batch, selected, layer)
        return selected

    def check(self, batch: SimpleNamespace, selected: torch.Tensor, layer: int = 0) -> None:
        """Compare with the codes that were scored, exactly, and with the inputs, up to FP8."""
        assert selected.device.type == "musa"
        assert selected.dtype == torch.int32
        assert selected.shape == (batch.positions.numel(), TOPK)
        found = selected.cpu()
        q, weights = scored()
        codes = {request: self.stored(request, layer) for request in set(batch.requests)}
        true = {request: self.keys(request, layer) for request in codes}
        for row, request in enumerate(batch.requests):
            seen = int(batch.positions[row]) + 1
            chosen = found[row, : min(TOPK, seen)].long()
            assert bool((found[row, len(chosen) :] == -1).all()), row
            assert len(set(chosen.tolist())) == len(chosen), row
            k, k_scale = (part[:seen] for part in codes[request])
            (exact,) = oracle.scores(q[row, None], k, k_scale, weights[row, None]).float()
            # By score, since tokens that no head sees are equal.
            best = exact.sort(descending=True).values[: len(chosen)]
            assert torch.equal(exact[chosen].sort(descending=True).values, best), row
            scores, largest = self.scores(layer, request, row, true[request][:seen])
            assert (exact - scores).abs().max() <= FP8_NOISE * largest, row

    def scores(
        self, layer: int, request: int, row: int, keys: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of query ``row`` of the last step, float64 (tokens,), from the layer's inputs
        and the true ``keys`` it sees; and the largest that keys of their length could have."""
        indexer, last = self.indexers[layer], len(keys) - 1
        q = self.lora[row].double() @ wide(indexer.wq_b.weight).T
        q = rope(q.view(HEADS, DEPTH), torch.full((HEADS,), last)) @ hadamard()
        gates = self.inputs[layer, request][last].double() @ wide(indexer.weights_proj.weight).T
        gates = gates * HEADS**-0.5 * DEPTH**-0.5
        largest = gates.abs() @ q.norm(dim=-1) * keys.norm(dim=-1).max()
        return gates @ torch.relu(q @ keys.T), largest

    def keys(self, request: int, layer: int = 0) -> torch.Tensor:
        """Keys of a request from the layer's inputs, rotated, float64 (tokens, DEPTH)."""
        indexer = self.indexers[layer]
        x = torch.stack(self.inputs[layer, request]).double()
        k = torch.nn.functional.layer_norm(
            x @ wide(indexer.wk.weight).T,
            (DEPTH,),
            wide(indexer.k_norm.weight),
            wide(indexer.k_norm.bias),
            indexer.k_norm.variance_epsilon,
        )
        return rope(k, torch.arange(len(k))) @ hadamard()

    def stored(self, request: int, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (tokens, DEPTH) and scales (tokens,) of a request's keys, float32, as cached."""
        cache = self.pool.get_index_k_with_scale_buffer(layer).cpu().view(-1, PAGE, 1, DEPTH + 4)
        codes, scales = oracle.split_cache(cache)
        slots = self.table[request, : self.seen[request]].long()
        return codes.float().flatten(0, 1)[slots], scales.flatten()[slots]


def scored() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries (rows, HEADS, DEPTH) and weights (rows, HEADS) that deep_gemm was given."""
    calls = [arguments for name, arguments in deep_gemm.calls if "logits" in name]
    calls = [arguments for arguments in calls if "q" in arguments]
    q = [arguments["q"].cpu().flatten(0, -3)[:, :HEADS] for arguments in calls]
    weights = [arguments["weights"].cpu()[:, :HEADS] for arguments in calls]
    return torch.cat([part.float() for part in q]), torch.cat(weights)


def wide(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().cpu().double()


def rope(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Turn pairs of neighbours among the first ROPE of the last dimension of (rows, DEPTH)."""
    speed = BASE ** -(torch.arange(0, ROPE, 2, dtype=torch.float64) / ROPE)
    turn = torch.polar(torch.ones(ROPE // 2, dtype=torch.float64), positions[:, None] * speed)
    turned = torch.view_as_complex(x[:, :ROPE].unflatten(-1, (-1, 2)).contiguous()) * turn
    return torch.cat([torch.view_as_real(turned).flatten(-2), x[:, ROPE:]], dim=-1)


@functools.cache
def hadamard() -> torch.Tensor:
    """The orthogonal Hadamard matrix of DEPTH, from the parity of common bits."""
    signs = [[1 - 2 * ((i & j).bit_count() % 2) for j in range(DEPTH)] for i in range(DEPTH)]
    return torch.tensor(signs, dtype=torch.float64) * DEPTH**-0.5
