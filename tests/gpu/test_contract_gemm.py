"""The GEMMs."""

from gpu_contract import ON_THE_HOST, contract

MODULES: dict[str, dict[str, str]] = {
    "gemm_dense": {},
    "gemm_deep_gemm": {},
    "gemm_masked": {
        "test_a_consumer_that_spins_on_the_signal_sees_finished_rows": ON_THE_HOST,
    },
    "gemm_ragged_k": {},
    "gemm_ragged_m": {},
    "gemm_scale_ranks": {},
}
globals().update(contract(MODULES))
