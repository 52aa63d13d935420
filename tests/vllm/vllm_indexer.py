"""Compare vLLM's own ``Indexer.forward`` with the torch model, without its kernels and engine.

A script of one argument, the folder of a checkpoint. It prints the operands that are equal, and
fails at the first that is not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "serving"))
from torch_indexer import operands
from torch_model import Model
from torch_ops import BF16, FP8

LENGTH = 700
AT = "model.layers.1.self_attn.indexer."


def main(folder: Path) -> None:
    from vllm.config import VllmConfig, set_current_vllm_config

    model = Model(folder, fp8=False)
    chance = torch.Generator().manual_seed(3)
    x, q_low = (
        torch.randn(LENGTH, model.config[size], generator=chance).to(BF16)
        for size in ("hidden_size", "q_lora_rank")
    )
    with set_current_vllm_config(VllmConfig()):
        theirs = vllm_operands(model, x, q_low)
    ours = operands(model, x, q_low, AT)
    # vLLM quantises keys when it writes them into its cache.
    keys = ours.k.float() * ours.k_scale[:, None]
    rounded = (theirs.k.float() / ours.k_scale[:, None]).to(FP8).float() * ours.k_scale[:, None]
    for name, a, b in (
        ("q", theirs.q.float(), ours.q.float()),
        ("k", rounded, keys),
        ("weights", theirs.weights, ours.weights),
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=lambda text, n=name: f"{n}: {text}")
        print(name)


def vllm_operands(model: Model, x: torch.Tensor, q_low: torch.Tensor) -> SimpleNamespace:
    """What vLLM's indexer would hand to its op: ``q``, ``k`` in bf16 and ``weights``."""
    from vllm.model_executor.layers.rotary_embedding import get_rope
    from vllm.model_executor.models import deepseek_v2

    c, seen = model.config, SimpleNamespace()
    indexer = deepseek_v2.Indexer.__new__(deepseek_v2.Indexer)
    torch.nn.Module.__init__(indexer)
    heads, dim, rope = c["index_n_heads"], c["index_head_dim"], c["qk_rope_head_dim"]
    indexer.n_head, indexer.head_dim, indexer.rope_dim = heads, dim, rope
    indexer.softmax_scale, indexer.n_head_scale = dim**-0.5, heads**-0.5
    indexer.quant_block_size, indexer.scale_fmt = 128, "ue8m0"
    indexer.is_inplace_rope = indexer.use_fused_indexer_q = False
    indexer.wq_b = lambda rows: (model.linear(rows, AT + "wq_b"), None)
    indexer.wk_weights_proj = lambda rows: (
        model.linear(rows, AT + "wk", AT + "weights_proj"),
        None,
    )
    indexer.k_norm = deepseek_v2.LayerNorm(dim, eps=1e-6, dtype=torch.float32)
    indexer.k_norm.weight.data = model.weight[AT + "k_norm.weight"]
    indexer.k_norm.bias.data = model.weight[AT + "k_norm.bias"]
    indexer.indexer_op = lambda _, q, k, weights: seen.__dict__.update(q=q, k=k, weights=weights)
    parameters = c["rope_scaling"] | {"rope_type": "deepseek_yarn", "rope_theta": c["rope_theta"]}
    rotary = get_rope(
        rope,
        max_position=c["max_position_embeddings"],
        rope_parameters=parameters,
        is_neox_style=True,
        dtype=BF16,
    )
    # The kernel behind this function needs Triton.
    deepseek_v2.per_token_group_quant_fp8 = quantise
    indexer.forward(x, q_low, torch.arange(len(x)), rotary)
    return seen


def quantise(
    x: torch.Tensor, group: int, *, column_major_scales: bool, use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's function of that name for one group per row and scales that are powers of two."""
    assert x.shape[1] == group
    assert use_ue8m0
    assert not column_major_scales
    largest = x.float().abs().amax(1, keepdim=True).clamp(min=1e-10)
    scale = torch.exp2(torch.ceil(torch.log2(largest * (1 / 448))))
    return (x.float() / scale).to(FP8), scale


if __name__ == "__main__":
    main(Path(sys.argv[1]))
