#pragma once

#include <cstdint>
#include <string>

namespace mm::verbs {

enum class ModeChoice : std::uint8_t { kUC, kRC, kAuto };

// What a verbs link has beside the knobs of all links.
struct LinkSettings {
  // kAuto: reliable where both devices have it, else unreliable; Apple's have unreliable alone and are not asked.
  ModeChoice mode = ModeChoice::kAuto;
  std::string build;             // of the operating system; where both ends give one they must be equal
  double retransmit_ms = 5.0;    // silence about a sent frame after which the peer is asked; doubles while nothing moves
  double silence_seconds = 10.0; // without a word on the control socket after which the peer is lost
  double linger_seconds = 2.0;   // how long a link that closes waits for the peer to have all
  std::uint32_t max_attempts = 12;  // of one frame, then the link fails
  std::uint32_t links_per_device = 2;  // which share the device's queue pairs

  // Throws std::invalid_argument that names the setting and what it may be.
  void validate() const;
};

}  // namespace mm::verbs
