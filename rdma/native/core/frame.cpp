#include "core/frame.h"

namespace mm {

std::string to_text(const Epoch& epoch) {
  return "epoch " + std::to_string(epoch.generation) + "." + std::to_string(epoch.term) + "." +
         std::to_string(epoch.seq);
}

}  // namespace mm
