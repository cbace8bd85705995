#include "mlx/arrays.h"

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mx = mlx::core;

namespace mm {
namespace {

const std::array<std::pair<mx::Dtype, Dtype>, 14> kDtypes = {{
    {mx::bool_, Dtype::kBool},
    {mx::uint8, Dtype::kUint8},
    {mx::uint16, Dtype::kUint16},
    {mx::uint32, Dtype::kUint32},
    {mx::uint64, Dtype::kUint64},
    {mx::int8, Dtype::kInt8},
    {mx::int16, Dtype::kInt16},
    {mx::int32, Dtype::kInt32},
    {mx::int64, Dtype::kInt64},
    {mx::float16, Dtype::kFloat16},
    {mx::float32, Dtype::kFloat32},
    {mx::float64, Dtype::kFloat64},
    {mx::bfloat16, Dtype::kBfloat16},
    {mx::complex64, Dtype::kComplex64},
}};

}  // namespace

Dtype dtype_of(mx::Dtype dtype) {
  for (const auto& [theirs, ours] : kDtypes) {
    if (theirs == dtype) return ours;
  }
  throw std::invalid_argument("an array of a type that this transport does not know");
}

mx::Dtype mlx_dtype_of(Dtype dtype) {
  for (const auto& [theirs, ours] : kDtypes) {
    if (ours == dtype) return theirs;
  }
  throw std::invalid_argument("MLX has no arrays of type " + std::string(name_of(dtype)));
}

Message message_of(const mx::array& array) {
  std::vector<std::int64_t> shape(array.shape().begin(), array.shape().end());
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  text += shape.size() == 1 ? ",)" : ")";
  return {dtype_of(array.dtype()), hash_shape(shape), std::move(text)};
}

// MLX hands row-contiguous arrays to a group's operations; anything else would be sent in the wrong order.
Memory memory_of(const mx::array& array) {
  if (!in_order(array)) {
    throw std::runtime_error("MLX gave a group an array that is not row-contiguous: this is not the version that this "
                             "module was written for");
  }
  if (array.size() == 0) return {nullptr, nullptr, 0};  // may have no memory at all
  return {array.data_shared_ptr(), reinterpret_cast<std::byte*>(const_cast<char*>(array.data<char>())),
          array.nbytes()};
}

}  // namespace mm
