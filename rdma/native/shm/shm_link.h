#pragma once

#include <cstddef>
#include <memory>

#include "core/link.h"

namespace mm {

// Bytes of the shared memory of one direction.
[[nodiscard]] std::size_t shm_bytes(const LinkOptions& options);

struct ShmDescriptors {
  int send_memory = -1;       // shm_bytes() each, zero before the first side maps it
  int receive_memory = -1;
  int send_doorbell = -1;     // connected Unix stream sockets
  int receive_doorbell = -1;
};

// A link between two processes of one machine. Takes all four descriptors over, also where this throws.
//
// Throws std::invalid_argument for wrong options or memory of another size, layout or options, and std::system_error
// for a descriptor that is not what it should be. The peer may write anything into the memory, which this side finds
// out; it must not shorten the object, which no side can guard against.
std::unique_ptr<Link> shm_link(const ShmDescriptors& descriptors, const LinkOptions& options);

}  // namespace mm
