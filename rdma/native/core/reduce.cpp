#include "core/reduce.h"

#include <algorithm>
#include <array>
#include <complex>
#include <cstring>
#include <type_traits>

#include "core/half.h"

namespace mm {
namespace {

// All inputs are read block by block, so that the accumulator stays in the nearest cache and `out` may be an input.
constexpr std::size_t kBlockElements = 2048;

struct Complex {
  float real;
  float imag;
};

bool is_nan(const Complex& z) { return z.real != z.real || z.imag != z.imag; }

template <class T>
T plus(T a, T b) {
  if constexpr (std::is_same_v<T, bool>) {
    return a || b;
  } else if constexpr (std::is_same_v<T, Complex>) {
    return {a.real + b.real, a.imag + b.imag};
  } else if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;  // sums wrap around; signed overflow would be undefined
    return static_cast<T>(static_cast<U>(static_cast<U>(a) + static_cast<U>(b)));
  } else {
    return a + b;
  }
}

// `a` stays where neither is larger, or where it is NaN.
template <bool kGreater, class T>
T pick(T a, T b) {
  if constexpr (std::is_same_v<T, Complex>) {
    bool beyond = a.real != b.real ? (kGreater ? b.real > a.real : b.real < a.real)
                                   : (kGreater ? b.imag > a.imag : b.imag < a.imag);
    return !is_nan(a) && (is_nan(b) || beyond) ? b : a;
  } else if constexpr (std::is_floating_point_v<T>) {
    bool beyond = kGreater ? b > a : b < a;
    return beyond || b != b ? b : a;
  } else {
    return (kGreater ? b > a : b < a) ? b : a;
  }
}

template <class T>
void accumulate(Reduction reduction, T* into, const T* from, std::size_t count) {
  switch (reduction) {
    case Reduction::kSum:
      for (std::size_t i = 0; i < count; ++i) into[i] = plus(into[i], from[i]);
      return;
    case Reduction::kMax:
      for (std::size_t i = 0; i < count; ++i) into[i] = pick<true>(into[i], from[i]);
      return;
    case Reduction::kMin:
      for (std::size_t i = 0; i < count; ++i) into[i] = pick<false>(into[i], from[i]);
      return;
  }
}

using Inputs = std::vector<std::span<const std::byte>>;

template <class T>
void reduce_as(Reduction reduction, const Inputs& inputs, std::span<std::byte> out) {
  std::array<T, kBlockElements> sum;
  std::size_t elements = out.size() / sizeof(T);
  for (std::size_t at = 0; at < elements; at += kBlockElements) {
    std::size_t count = std::min(kBlockElements, elements - at);
    std::memcpy(sum.data(), inputs[0].data() + at * sizeof(T), count * sizeof(T));
    for (std::size_t k = 1; k < inputs.size(); ++k) {
      // MLX's arrays are aligned to their elements, and segments are cut between elements.
      accumulate(reduction, sum.data(), reinterpret_cast<const T*>(inputs[k].data()) + at, count);
    }
    std::memcpy(out.data() + at * sizeof(T), sum.data(), count * sizeof(T));
  }
}

using FromFloat = void (*)(const float*, std::uint16_t*, std::size_t);
using ToFloat = void (*)(const std::uint16_t*, float*, std::size_t);

void reduce_in_float(Reduction reduction, ToFloat widen, FromFloat narrow, const Inputs& inputs,
                     std::span<std::byte> out) {
  std::array<float, kBlockElements> sum;
  std::array<float, kBlockElements> wide;
  std::size_t elements = out.size() / 2;
  for (std::size_t at = 0; at < elements; at += kBlockElements) {
    std::size_t count = std::min(kBlockElements, elements - at);
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      widen(reinterpret_cast<const std::uint16_t*>(inputs[k].data()) + at, k == 0 ? sum.data() : wide.data(), count);
      if (k > 0) accumulate(reduction, sum.data(), wide.data(), count);
    }
    narrow(sum.data(), reinterpret_cast<std::uint16_t*>(out.data()) + at, count);
  }
}

}  // namespace

void reduce(Reduction reduction, Dtype dtype, const Inputs& inputs, std::span<std::byte> out) {
  static_assert(sizeof(bool) == 1);
  switch (dtype) {
    case Dtype::kBool: return reduce_as<bool>(reduction, inputs, out);
    case Dtype::kBytes:
    case Dtype::kUint8: return reduce_as<std::uint8_t>(reduction, inputs, out);
    case Dtype::kUint16: return reduce_as<std::uint16_t>(reduction, inputs, out);
    case Dtype::kUint32: return reduce_as<std::uint32_t>(reduction, inputs, out);
    case Dtype::kUint64: return reduce_as<std::uint64_t>(reduction, inputs, out);
    case Dtype::kInt8: return reduce_as<std::int8_t>(reduction, inputs, out);
    case Dtype::kInt16: return reduce_as<std::int16_t>(reduction, inputs, out);
    case Dtype::kInt32: return reduce_as<std::int32_t>(reduction, inputs, out);
    case Dtype::kInt64: return reduce_as<std::int64_t>(reduction, inputs, out);
    case Dtype::kFloat16: return reduce_in_float(reduction, from_half, to_half, inputs, out);
    case Dtype::kFloat32: return reduce_as<float>(reduction, inputs, out);
    case Dtype::kFloat64: return reduce_as<double>(reduction, inputs, out);
    case Dtype::kBfloat16: return reduce_in_float(reduction, from_bfloat, to_bfloat, inputs, out);
    case Dtype::kComplex64: return reduce_as<Complex>(reduction, inputs, out);
  }
}

}  // namespace mm
