"""The compiled GEMM entries. Operands are logical (rows, K) views; every entry writes ``out``.

Scale dimensions of size 1 broadcast; a scale of one element may have any rank. A granularity of 0
is the whole dimension.
"""

from __future__ import annotations

from mate_plugin.kernels import library

ragged_m_gemm = library.define(
    "ragged_m_gemm",
    "(Tensor a, Tensor? sa, Tensor b, Tensor? sb, Tensor info, Tensor(a!) out, int a_tag,"
    " int b_tag, int gemm_mode, int gran_n, int gran_k, int alignment_m, int out_tag,"
    " int num_threads, int stream) -> ()",
)
masked_gemm = library.define(
    "masked_gemm",
    "(Tensor a, Tensor? sa, Tensor b, Tensor? sb, Tensor counts, Tensor(a!) out,"
    " Tensor(b!)? signal, int a_tag, int b_tag, int gran_n, int gran_k, int out_tag,"
    " int expect_tokens, int num_threads, int stream) -> ()",
)
ragged_k_gemm = library.define(
    "ragged_k_gemm",
    "(Tensor a, Tensor? sa, Tensor b, Tensor? sb, Tensor counts, Tensor(a!) out, int a_tag,"
    " int b_tag, int out_tag, int num_threads, int stream) -> ()",
)
batched_gemm = library.define(
    "batched_gemm",
    "(Tensor a, Tensor? sa, Tensor b, Tensor? sb, Tensor(a!) out, Tensor? c, Tensor? divisor,"
    " Tensor(b!)? out_scale, int a_tag, int b_tag, int c_tag, int gran_n, int gran_k, int out_tag,"
    " str backend, int num_threads, int stream) -> ()",
    extras=1,
)
