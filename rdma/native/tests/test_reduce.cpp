#include "core/reduce.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>

#include "core/half.h"
#include "tests/check.h"

using namespace mm;

namespace {

template <class T>
std::vector<T> reduced(Reduction reduction, Dtype dtype, std::vector<std::vector<T>> inputs) {
  std::vector<std::span<const std::byte>> spans;
  for (const auto& input : inputs) spans.push_back(std::as_bytes(std::span(input)));
  std::vector<T> out(inputs[0].size());
  reduce(reduction, dtype, spans, std::as_writable_bytes(std::span(out)));
  // In place into any of the inputs it is the same.
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    auto copies = inputs;
    spans.clear();
    for (const auto& input : copies) spans.push_back(std::as_bytes(std::span(input)));
    reduce(reduction, dtype, spans, std::as_writable_bytes(std::span(copies[k])));
    CHECK(std::memcmp(copies[k].data(), out.data(), out.size() * sizeof(T)) == 0);
  }
  return out;
}

template <class T>
std::vector<T> ramp(std::size_t count, T start, T step) {
  std::vector<T> values(count);
  T value = start;
  for (T& v : values) {
    v = value;
    value = static_cast<T>(value + step);
  }
  return values;
}

template <class T>
void check_numbers(Dtype dtype) {
  for (std::size_t count : {0, 1, 7, 2047, 2048, 2049, 5000}) {
    auto a = ramp<T>(count, 1, 3);
    auto b = ramp<T>(count, 100, 1);
    auto c = ramp<T>(count, 2, 5);
    auto sum = reduced<T>(Reduction::kSum, dtype, {a, b, c});
    auto max = reduced<T>(Reduction::kMax, dtype, {a, b, c});
    auto min = reduced<T>(Reduction::kMin, dtype, {a, b, c});
    for (std::size_t i = 0; i < count; ++i) {
      CHECK(sum[i] == static_cast<T>(static_cast<T>(a[i] + b[i]) + c[i]));
      CHECK(max[i] == std::max<T>(a[i], std::max<T>(b[i], c[i])));
      CHECK(min[i] == std::min<T>(a[i], std::min<T>(b[i], c[i])));
    }
  }
}

}  // namespace

TEST(numbers) {
  check_numbers<std::uint8_t>(Dtype::kUint8);
  check_numbers<std::uint16_t>(Dtype::kUint16);
  check_numbers<std::uint32_t>(Dtype::kUint32);
  check_numbers<std::uint64_t>(Dtype::kUint64);
  check_numbers<std::int8_t>(Dtype::kInt8);
  check_numbers<std::int16_t>(Dtype::kInt16);
  check_numbers<std::int32_t>(Dtype::kInt32);
  check_numbers<std::int64_t>(Dtype::kInt64);
  check_numbers<float>(Dtype::kFloat32);
  check_numbers<double>(Dtype::kFloat64);
}

TEST(bools) {
  std::vector<std::uint8_t> a{0, 0, 1, 1};
  std::vector<std::uint8_t> b{0, 1, 0, 1};
  CHECK((reduced<std::uint8_t>(Reduction::kSum, Dtype::kBool, {a, b}) == std::vector<std::uint8_t>{0, 1, 1, 1}));
  CHECK((reduced<std::uint8_t>(Reduction::kMax, Dtype::kBool, {a, b}) == std::vector<std::uint8_t>{0, 1, 1, 1}));
  CHECK((reduced<std::uint8_t>(Reduction::kMin, Dtype::kBool, {a, b}) == std::vector<std::uint8_t>{0, 0, 0, 1}));
}

TEST(not_a_number_is_carried_along) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (Reduction reduction : {Reduction::kSum, Reduction::kMax, Reduction::kMin}) {
    auto out = reduced<float>(reduction, Dtype::kFloat32, {{nan, 1, 1, 2}, {1, nan, 1, 3}, {2, 2, nan, 1}});
    CHECK(std::isnan(out[0]) && std::isnan(out[1]) && std::isnan(out[2]) && !std::isnan(out[3]));
    std::vector<std::uint16_t> x{0x7E01, 0x3C00};
    std::vector<std::uint16_t> y{0x3C00, 0x7E01};
    for (std::uint16_t half : reduced<std::uint16_t>(reduction, Dtype::kFloat16, {x, y})) {
      CHECK(std::isnan(half_to_float(half)));
    }
  }
}

TEST(complex_numbers) {
  using C = std::complex<float>;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<C> a{{1, 2}, {1, 2}, {3, 0}, {nan, 1}, {1, 1}};
  std::vector<C> b{{1, 3}, {2, 0}, {2, 9}, {9, 9}, {1, nan}};
  auto sum = reduced<C>(Reduction::kSum, Dtype::kComplex64, {a, b});
  CHECK(sum[0] == C(2, 5));
  auto max = reduced<C>(Reduction::kMax, Dtype::kComplex64, {a, b});
  CHECK(max[0] == C(1, 3) && max[1] == C(2, 0) && max[2] == C(3, 0));
  CHECK(std::isnan(max[3].real()) && std::isnan(max[4].imag()));
  auto min = reduced<C>(Reduction::kMin, Dtype::kComplex64, {a, b});
  CHECK(min[0] == C(1, 2) && min[1] == C(1, 2) && min[2] == C(2, 9) && std::isnan(min[3].real()));
}

TEST(halves_are_summed_in_float_and_rounded_once) {
  // 2048 + 1 is not a binary16; 2048 + 1 + 1 is. Rounding at each step would lose both ones.
  std::vector<std::uint16_t> big(3000, 0x6800);
  std::vector<std::uint16_t> one(3000, 0x3C00);
  for (std::uint16_t out : reduced<std::uint16_t>(Reduction::kSum, Dtype::kFloat16, {big, one, one})) CHECK(out == 0x6801);
  // The same for bfloat16: 256 + 1 + 1 = 258.
  std::vector<std::uint16_t> large(3000, 0x4380);
  std::vector<std::uint16_t> unit(3000, 0x3F80);
  for (std::uint16_t out : reduced<std::uint16_t>(Reduction::kSum, Dtype::kBfloat16, {large, unit, unit})) {
    CHECK(out == 0x4381);
  }
}

TEST(half_conversions_agree_with_the_processor) {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  std::vector<float> floats(halves.size());
  from_half(halves.data(), floats.data(), halves.size());
  std::vector<std::uint16_t> back(halves.size());
  to_half(floats.data(), back.data(), back.size());
  for (std::size_t i = 0; i < halves.size(); ++i) {
    CHECK(std::bit_cast<std::uint32_t>(half_to_float(halves[i])) == std::bit_cast<std::uint32_t>(floats[i]));
    bool nan = std::isnan(floats[i]);
    CHECK(nan ? std::isnan(half_to_float(back[i])) : back[i] == halves[i]);
  }
  // Floats of all exponents, at and around the ties.
  std::vector<float> values;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 4093) {
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  }
  for (std::uint32_t half = 0; half < 0x7C00; ++half) {
    float low = half_to_float(static_cast<std::uint16_t>(half));
    float high = half == 0x7BFF ? 65536.0f : half_to_float(static_cast<std::uint16_t>(half + 1));
    float tie = (low + high) / 2;
    for (float v : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1e9f)}) {
      values.push_back(v);
      values.push_back(-v);
    }
  }
  std::vector<std::uint16_t> out(values.size());
  to_half(values.data(), out.data(), values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t portable = float_to_half(values[i]);
    CHECK_TEXT(std::isnan(values[i]) ? std::isnan(half_to_float(out[i])) && std::isnan(half_to_float(portable))
                                     : portable == out[i],
               std::to_string(values[i]));
  }
}

TEST(bfloat_conversions) {
  struct Case {
    std::uint32_t bits;
    std::uint16_t rounded;
  };
  // Down, tie to even (down and up), up, carry into the exponent, to infinity, infinity, NaN whose payload is cut.
  for (auto [bits, rounded] : {Case{0x3F807FFF, 0x3F80}, Case{0x3F808000, 0x3F80}, Case{0x3F818000, 0x3F82},
                               Case{0x3F808001, 0x3F81}, Case{0x3FFFFFFF, 0x4000}, Case{0x7F7FFFFF, 0x7F80},
                               Case{0x7F800000, 0x7F80}, Case{0x7F800001, 0x7FC0}, Case{0x80000000, 0x8000}}) {
    float value = std::bit_cast<float>(bits);
    std::uint16_t out = 0;
    to_bfloat(&value, &out, 1);
    CHECK_TEXT(out == rounded, std::to_string(out));
  }
  for (std::uint32_t i = 0; i < 65536; ++i) {
    auto in = static_cast<std::uint16_t>(i);
    float value = 0;
    from_bfloat(&in, &value, 1);
    std::uint16_t back = 0;
    to_bfloat(&value, &back, 1);
    CHECK(std::isnan(value) ? (back & 0x7FFF) > 0x7F80 : back == in);
  }
}

CHECK_MAIN
