"""The pieces around the GEMMs, and the selection of the largest values."""

from gpu_contract import ON_THE_HOST, contract

MODULES: dict[str, dict[str, str]] = {
    "quant": {},
    "moe_pieces": {},
    "topk": {
        "test_denormals_are_told_apart_even_where_they_are_flushed": ON_THE_HOST,
    },
}
globals().update(contract(MODULES))
