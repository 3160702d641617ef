// The functions of the row engine for one instruction set, as target.h lists them.
#pragma once

#include <stdint.h>

#include "../philox.h"
#include "ceilings.inl"
#include "draw.inl"
#include "embed.inl"
#include "outputs.inl"
#include "simd.inl"
#include "target.h"

namespace fastdecode {
namespace FD_TARGET {

constexpr Target target_named(const char* name) {
  return {name, truncate_row, sample_row, exponential_for, read_once, exp_pass, embed_columns};
}

}  // namespace FD_TARGET
}  // namespace fastdecode
