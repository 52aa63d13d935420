// What the entries ask of Hopper's kernels, which this library does not have.
#include "gpu/gemm.h"
#include "gpu/indexer.h"

namespace mate::gpu {
namespace {

constexpr const char* kReason = "the library of musa devices has no such kernels";

}  // namespace

const char* sm90a_gemm_unfit(const Gemm&) { return kReason; }
const char* sm90a_paged_unfit(const PagedScores&) { return kReason; }
const char* sm90a_flat_unfit(const FlatScores&) { return kReason; }

void sm90a_gemm(const Gemm&, const Launch&) { throw std::logic_error(kReason); }
SignalUnits sm90a_signal_units(const Gemm&, const Launch&) { throw std::logic_error(kReason); }
void sm90a_paged_scores(const PagedScores&, const Launch&) { throw std::logic_error(kReason); }
void sm90a_flat_scores(const FlatScores&, const Launch&) { throw std::logic_error(kReason); }

}  // namespace mate::gpu
