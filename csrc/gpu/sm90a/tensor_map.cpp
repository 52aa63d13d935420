#include "gpu/sm90a/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include "gpu/launch.h"

namespace mate::gpu::sm90a {
namespace {

// Looked up at run time: the library loads where there is no driver.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess || entry == nullptr) {
      throw std::runtime_error("the driver has no cuTensorMapEncodeTiled: expected 525 or newer");
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  return found;
}

CUtensorMapDataType data_type(DType type) {
  switch (type) {
    case DType::kE4M3:
    case DType::kE5M2:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case DType::kBF16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kF16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  }
}

CUtensorMapSwizzle swizzle(const TensorBox& box) {
  if (!box.swizzles) return CU_TENSOR_MAP_SWIZZLE_NONE;
  switch (box.box_x * size_of(box.type)) {
    case 32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case 64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    default:
      return CU_TENSOR_MAP_SWIZZLE_128B;
  }
}

}  // namespace

bool is_aligned(const TensorBox& box) {
  return reinterpret_cast<uintptr_t>(box.data) % 16 == 0 && box.y_stride % 16 == 0 &&
         box.z_stride % 16 == 0 && (box.y <= 1 || box.y_stride > 0) &&
         (box.z <= 1 || box.z_stride > 0);
}

CUtensorMap tensor_map(const TensorBox& box) {
  // A dimension of size 1 may come with any stride; the encoder wants one that makes sense.
  const int64_t size = size_of(box.type);
  const auto row = static_cast<cuuint64_t>(
      box.y > 1 ? box.y_stride : std::max<int64_t>(16, (box.x * size + 15) / 16 * 16));
  const auto plane = box.z > 1 ? static_cast<cuuint64_t>(box.z_stride)
                               : row * static_cast<cuuint64_t>(std::max<int64_t>(box.y, 1));
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(box.x), static_cast<cuuint64_t>(box.y),
                               static_cast<cuuint64_t>(box.z)};
  const cuuint64_t strides[2] = {row, plane};
  const cuuint32_t extent[3] = {static_cast<cuuint32_t>(box.box_x),
                                static_cast<cuuint32_t>(box.box_y), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status =
      encoder()(&map, data_type(box.type), 3, const_cast<void*>(box.data), sizes, strides, extent,
                steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle(box),
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(status));
  }
  return map;
}

}  // namespace mate::gpu::sm90a
