// Entry points around packed weights.
#include "cpu/packing.h"

#include "api/entry.h"
#include "api/operands.h"

namespace mate::api {

void require_packed(const GroupedGemm& p) {
  if (!p.b.packed) return;
  if (kernels().packed.takes(p)) return;
  TVM_FFI_THROW(ValueError) << "packed weights: the " << kernels().name
                            << " kernels do not take them beside these activations";
}

namespace {

// Whether the kernels in use read packed weights of a type.
bool packs_weights(int64_t tag) { return kernels().packed.reads(dtype(tag)); }

// Whether `rows` has codes that the kernels in use do not read from packed weights.
bool has_codes_to_leave(TensorView rows, int64_t tag, int64_t num_threads) {
  if (dtype(tag) != DType::kE4M3 || kernels().packed.takes_nan) return false;
  int64_t count = 1;
  for (int d = 0; d < rows.ndim(); ++d) count *= rows.size(d);
  return cpu::has_nan_codes(data<const void>(rows), count, static_cast<int>(num_threads));
}

// Rows [..., k], contiguous, to their packed form; both may be the same memory.
void pack_weights(TensorView rows, TensorView packed, int64_t tag, int64_t num_threads,
                  int64_t /*stream*/) {
  MATE_COUNT_CALL("pack_weights");
  const int64_t k = rows.size(rows.ndim() - 1);
  int64_t count = 1;
  for (int d = 0; d + 1 < rows.ndim(); ++d) count *= rows.size(d);
  cpu::pack_weights(data<void>(packed), data<const void>(rows), count, k, size_of(dtype(tag)),
                    kernels().packed.order, static_cast<int>(num_threads));
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(packs_weights, packs_weights);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(has_codes_to_leave, has_codes_to_leave);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(pack_weights, pack_weights);

}  // namespace
}  // namespace mate::api
