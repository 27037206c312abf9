// The element types of logits, their sizes, and scalar conversions to and from double.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "objective.h"
#include "simd/half.h"

namespace rapo {

RAPO_HOST_DEVICE constexpr std::size_t dtype_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kFloat64:
      return "float64";
  }
  return "unknown";
}

RAPO_HOST_DEVICE inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

RAPO_HOST_DEVICE inline std::uint32_t float_to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

RAPO_HOST_DEVICE inline float bfloat16_to_float(std::uint16_t half) {
  return bits_to_float(std::uint32_t{half} << 16);
}

/// Rounds to nearest, ties to even.
inline std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // NaN
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float float16_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // Scaling by 2^112 rebiases the exponent and turns subnormals into normal numbers.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * 5.192296858534828e33f));
}

/// Rounds to nearest, ties to even. Numbers beyond the range become infinite.
inline std::uint16_t float_to_float16(float value) {
  const std::uint32_t bits = float_to_bits(value), sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 makes the float adder round at the right bit
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u));
  }
  return static_cast<std::uint16_t>(sign |
                                    ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return bfloat16_to_float(x.bits); }
inline float to_float(Float16 x) { return float16_to_float(x.bits); }

/// Element `index` of an array of `dtype`.
inline double load_scalar(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(data)[index];
    case DType::kBFloat16:
      return bfloat16_to_float(static_cast<const std::uint16_t*>(data)[index]);
    case DType::kFloat16:
      return float16_to_float(static_cast<const std::uint16_t*>(data)[index]);
    case DType::kFloat64:
      return static_cast<const double*>(data)[index];
  }
  return 0;
}

inline void store_scalar(void* data, DType dtype, std::int64_t index, double value) {
  const auto f = static_cast<float>(value);
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[index] = f;
      break;
    case DType::kBFloat16:
      static_cast<std::uint16_t*>(data)[index] = float_to_bfloat16(f);
      break;
    case DType::kFloat16:
      static_cast<std::uint16_t*>(data)[index] = float_to_float16(f);
      break;
    case DType::kFloat64:
      static_cast<double*>(data)[index] = value;
      break;
  }
}

RAPO_HOST_DEVICE inline const void* row_of(const void* data, DType dtype, std::int64_t stride,
                                           std::int64_t row) {
  return static_cast<const char*>(data) + row * stride * static_cast<std::int64_t>(dtype_size(dtype));
}
RAPO_HOST_DEVICE inline void* row_of(void* data, DType dtype, std::int64_t stride, std::int64_t row) {
  return static_cast<char*>(data) + row * stride * static_cast<std::int64_t>(dtype_size(dtype));
}

}  // namespace rapo
