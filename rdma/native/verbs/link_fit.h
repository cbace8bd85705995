#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/options.h"
#include "core/status.h"
#include "verbs/queue_pair.h"

namespace mm::verbs {

// Before a frame's payload in its buffer: what this link writes, then the frame's header (link_wire.h). After it a
// word that tells a torn frame. Multiples of 64, so that payloads stay aligned.
inline constexpr std::uint32_t kPayloadAt = 192;
inline constexpr std::uint32_t kTrailerBytes = 8;
inline constexpr std::uint32_t kOverheadBytes = 256;

inline constexpr std::uint32_t kPageBytes = 4096;
inline constexpr std::uint32_t kEagerBytes = 8192;    // of the smallest class, where frame_bytes is larger
inline constexpr std::uint32_t kMostQueues = 9;       // of a link on one cable
inline constexpr std::uint32_t kMostCables = 8;
inline constexpr std::uint32_t kReportReceives = 2;   // of the smallest class, which no data may use
inline constexpr std::uint32_t kReportBuffers = 4;    // to send reports from, per cable

// One size class: its buffers are all of one size, and each cable has a queue pair for it.
struct SizeClass {
  std::uint32_t bytes = 0;
  std::uint32_t receives = 0;       // posted at each cable
  std::uint32_t sends = 0;          // buffers to send from, per cable, but they serve all cables
  std::uint32_t send_requests = 0;  // posted at once at one queue pair at most

  [[nodiscard]] std::uint32_t capacity() const { return bytes - kOverheadBytes; }
};

// What one link has of queue pairs and buffers: as the options want it, within what both ends' devices can have.
//
// In the region lie the buffers to send from, class by class, those of the reports, and for each cable the receives,
// class by class.
struct Fit {
  std::vector<SizeClass> classes;  // growing; the first also carries the reports
  std::uint32_t cables = 1;
  std::uint32_t spare_receives = 0;  // of each queue, which only the oldest missing frame may use
  std::uint32_t max_outstanding = 1;
  // Requests are as long as their buffers, because the device counts the frames of both sides.
  bool whole_buffers = false;
  std::vector<std::string> notes;  // what was cut down, and why

  [[nodiscard]] std::size_t region_bytes() const;
  [[nodiscard]] std::uint32_t send_slots(std::size_t size_class) const { return classes[size_class].sends * cables; }
  [[nodiscard]] std::size_t send_offset(std::size_t size_class, std::uint32_t slot) const;
  [[nodiscard]] std::size_t report_offset(std::uint32_t cable, std::uint32_t slot) const;
  [[nodiscard]] std::size_t receive_offset(std::uint32_t cable, std::size_t size_class, std::uint32_t slot) const;
  // The smallest class for a payload of so many bytes; classes.size() where none holds it.
  [[nodiscard]] std::size_t class_for(std::size_t payload_bytes) const;
  // Most payload bytes of a frame of a message of so many.
  [[nodiscard]] std::size_t frame_limit(std::size_t message_bytes) const;
  // Bytes that travel for a frame of a class with that payload.
  [[nodiscard]] std::uint32_t wire_bytes(std::size_t size_class, std::size_t payload_bytes) const;

 private:
  [[nodiscard]] std::size_t data_send_bytes() const;
  [[nodiscard]] std::size_t receive_bytes() const;  // of one cable
};

// The smaller of each limit; the rule of whole frames where either has it.
[[nodiscard]] Limits common(const Limits& a, const Limits& b);

// Fits the options into the limits, which hold for every cable and both ends. Pure: both ends compute the same. kLocal
// with the reason where even the least does not fit.
Status fit(const LinkOptions& options, const Limits& limits, std::uint32_t cables, std::uint32_t links_per_device,
           Fit& out);

// The same link with fewer queue pairs per cable: what is left where a device refused some. At least one.
Status with_queues(const LinkOptions& options, const Limits& limits, std::uint32_t cables, std::uint32_t queues,
                   Fit& out);

}  // namespace mm::verbs
