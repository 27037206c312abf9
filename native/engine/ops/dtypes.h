// The dtypes of the engine's weights and activations: X(enumerator of DType, element type, member of
// loops::Table, name in safetensors files, enumerator of at::ScalarType).
#pragma once

#include "simd/half.h"

#define RAPO_MODEL_DTYPES(X)            \
  X(kFloat32, float, f32, "F32", Float) \
  X(kBFloat16, BFloat16, bf16, "BF16", BFloat16)
