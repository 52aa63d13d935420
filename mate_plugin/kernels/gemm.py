"""The GEMM module of the published API (``mate.gemm``), and the w8a16 forms beside it."""

from __future__ import annotations

from mate_plugin.kernels.bmm import bmm_fp8, bmm_fp16
from mate_plugin.kernels.groupwise import gemm_fp8_nt_groupwise, gemm_w8a16_nt_groupwise
from mate_plugin.kernels.moe_gemm import (
    masked_moe_gemm_8bit,
    ragged_k_moe_gemm_8bit,
    ragged_m_moe_gemm_8bit,
)
from mate_plugin.kernels.moe_gemm_16bit import (
    masked_moe_gemm_16bit,
    ragged_k_moe_gemm_16bit,
    ragged_m_moe_gemm_16bit,
)
from mate_plugin.kernels.moe_gemm_w8a16 import masked_moe_gemm_w8a16, ragged_m_moe_gemm_w8a16

__all__ = [
    "bmm_fp8",
    "bmm_fp16",
    "gemm_fp8_nt_groupwise",
    "gemm_w8a16_nt_groupwise",
    "masked_moe_gemm_8bit",
    "masked_moe_gemm_16bit",
    "masked_moe_gemm_w8a16",
    "ragged_k_moe_gemm_8bit",
    "ragged_k_moe_gemm_16bit",
    "ragged_m_moe_gemm_8bit",
    "ragged_m_moe_gemm_16bit",
    "ragged_m_moe_gemm_w8a16",
]
