"""The lightning indexer and the paged caches."""

from gpu_contract import ON_THE_HOST, contract

# Of index_topk: the host takes room for the widest context that the block table allows.
LENGTHS_ARE_NOT_READ = "asserts room for logits by the lengths, which stay on the device"
MODULES: dict[str, dict[str, str]] = {
    "indexer": {},
    "indexer_bad_input": {},
    "indexer_cache": {},
    "index_topk": {
        "test_the_process_grows_no_more_than_the_budget": ON_THE_HOST,
        "test_concurrent_calls_are_counted_together": ON_THE_HOST,
        "test_long_contexts_stay_within_the_budget": LENGTHS_ARE_NOT_READ,
        "test_rows_that_see_no_more_than_k_tokens_take_all": LENGTHS_ARE_NOT_READ,
    },
}
globals().update(contract(MODULES))
