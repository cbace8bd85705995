#include "verbs/link_options.h"

#include <stdexcept>

namespace mm::verbs {
namespace {

void check(bool right, const char* name, double value, const char* expected) {
  if (!right) {
    throw std::invalid_argument(std::string("verbs setting ") + name + " = " + std::to_string(value) + ": must be " +
                                expected);
  }
}

}  // namespace

void LinkSettings::validate() const {
  check(retransmit_ms >= 0.5 && retransmit_ms <= 10000, "retransmit_ms", retransmit_ms, "from 0.5 to 10,000");
  check(silence_seconds >= 0.1 && silence_seconds <= 3600, "silence_seconds", silence_seconds, "from 0.1 to 3,600");
  check(linger_seconds >= 0 && linger_seconds <= 60, "linger_seconds", linger_seconds, "from 0 to 60");
  check(max_attempts >= 2 && max_attempts <= 1000, "max_attempts", max_attempts, "from 2 to 1,000");
  check(links_per_device >= 1 && links_per_device <= 64, "links_per_device", links_per_device, "from 1 to 64");
}

}  // namespace mm::verbs
