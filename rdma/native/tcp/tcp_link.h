#pragma once

#include <memory>

#include "core/link.h"

namespace mm {

// A link over a connected stream socket (TCP or Unix), which it takes over, also where this throws. Frames are sent
// straight from the payload's memory and received straight into it, but for what comes in one read with the header.
//
// Throws std::invalid_argument for wrong options and std::system_error for a descriptor that is no connected stream
// socket.
std::unique_ptr<Link> tcp_link(int descriptor, const LinkOptions& options);

}  // namespace mm
