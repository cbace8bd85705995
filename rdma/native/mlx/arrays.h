#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <stdexcept>

#include <mlx/array.h>

#include "core/channel.h"
#include "core/dtype.h"

// What the transport needs to know of MLX's arrays.
namespace mm {

// Throws std::invalid_argument for a type that does not travel.
Dtype dtype_of(mlx::core::Dtype dtype);
mlx::core::Dtype mlx_dtype_of(Dtype dtype);

Message message_of(const mlx::core::array& array);

// An array's memory, kept alive.
struct Memory {
  std::shared_ptr<mlx::core::array::Data> owner;
  std::byte* bytes;
  std::size_t size;

  [[nodiscard]] std::span<std::byte> span() const { return {bytes, size}; }
};

// Of an array that is row-contiguous. Where the memory is out of the processor's reach MLX moves it, which may take a while.
Memory memory_of(const mlx::core::array& array);

[[nodiscard]] inline bool in_order(const mlx::core::array& array) {
  return array.flags().row_contiguous || array.size() <= 1;
}

}  // namespace mm
