#include "verbs/link_fit.h"

#include <algorithm>
#include <limits>

#include "verbs/queue_depth.h"

namespace mm::verbs {
namespace {

constexpr std::uint32_t kLeastEager = 4;  // buffers of small frames; reports come on top
// A sender's copy, the way and the receiver's copy overlap where this much is in flight.
constexpr std::size_t kWindowBytes = std::size_t{1} << 20;

std::uint32_t round_up(std::uint32_t bytes, std::uint32_t unit) { return (bytes + unit - 1) / unit * unit; }

std::string number(std::uint64_t value) { return std::to_string(value); }

Status cannot(std::string text) { return Status(Code::kLocal, "no verbs link fits this device: " + std::move(text)); }

// The sizes that the options ask for.
std::vector<std::uint32_t> wanted_sizes(const LinkOptions& options) {
  const std::uint32_t first = round_up(options.frame_bytes, kPageBytes);
  std::vector<std::uint32_t> sizes;
  if (first > kEagerBytes) sizes.push_back(kEagerBytes);
  for (std::uint32_t i = 0; i < options.buffer_sizes; ++i) sizes.push_back(first << i);
  return sizes;
}

// `count` of the sizes: the smallest for small messages, the rest spread over the others. One alone is the second,
// which also serves large messages.
std::vector<std::uint32_t> spread(const std::vector<std::uint32_t>& sizes, std::uint32_t count) {
  if (count >= sizes.size()) return sizes;
  if (count == 1) return {sizes[1]};
  std::vector<std::uint32_t> kept{sizes.front()};
  const std::size_t others = sizes.size() - 1;
  const std::size_t picks = count - 1;
  if (picks == 1) {
    kept.push_back(sizes[1 + others / 2]);
    return kept;
  }
  for (std::size_t i = 0; i < picks; ++i) kept.push_back(sizes[1 + i * (others - 1) / (picks - 1)]);
  return kept;
}

// Where a device has no bound it says zero.
template <typename Count>
Count bound(Count most) {
  return most != 0 ? most : std::numeric_limits<Count>::max();
}

Limits bounded(Limits limits) {
  limits.max_send_requests = bound(limits.max_send_requests);
  limits.max_receive_requests = bound(limits.max_receive_requests);
  limits.max_completions = bound(limits.max_completions);
  limits.max_message_bytes = bound(limits.max_message_bytes);
  limits.max_region_bytes = bound(limits.max_region_bytes);
  return limits;
}

// As many requests of that size as a queue of so many places holds; see queue_depth.cpp.
std::uint32_t requests(const Limits& limits, std::uint32_t places, std::uint32_t bytes) {
  return (places - spare_places(limits)) / std::max(1U, request_places(limits, bytes));
}

// As many of both directions as the completion queue of their queue pair holds.
std::uint32_t completions(const Limits& limits, std::uint32_t bytes) {
  const std::uint32_t kept = 2 * spare_places(limits) + 1;
  return limits.max_completions <= kept ? 0 : (limits.max_completions - kept) / std::max(1U, request_places(limits, bytes));
}

}  // namespace

std::size_t Fit::data_send_bytes() const {
  std::size_t bytes = 0;
  for (const SizeClass& k : classes) bytes += std::size_t{k.sends} * cables * k.bytes;
  return bytes;
}

std::size_t Fit::receive_bytes() const {
  std::size_t bytes = 0;
  for (const SizeClass& k : classes) bytes += std::size_t{k.receives} * k.bytes;
  return bytes;
}

std::size_t Fit::region_bytes() const {
  return data_send_bytes() + std::size_t{cables} * kReportBuffers * classes[0].bytes + cables * receive_bytes();
}

std::size_t Fit::send_offset(std::size_t size_class, std::uint32_t slot) const {
  std::size_t at = 0;
  for (std::size_t k = 0; k < size_class; ++k) at += std::size_t{classes[k].sends} * cables * classes[k].bytes;
  return at + std::size_t{slot} * classes[size_class].bytes;
}

std::size_t Fit::report_offset(std::uint32_t cable, std::uint32_t slot) const {
  return data_send_bytes() + (std::size_t{cable} * kReportBuffers + slot) * classes[0].bytes;
}

std::size_t Fit::receive_offset(std::uint32_t cable, std::size_t size_class, std::uint32_t slot) const {
  std::size_t at = data_send_bytes() + std::size_t{cables} * kReportBuffers * classes[0].bytes + cable * receive_bytes();
  for (std::size_t k = 0; k < size_class; ++k) at += std::size_t{classes[k].receives} * classes[k].bytes;
  return at + std::size_t{slot} * classes[size_class].bytes;
}

std::size_t Fit::class_for(std::size_t payload_bytes) const {
  std::size_t k = 0;
  while (k < classes.size() && payload_bytes > classes[k].capacity()) ++k;
  return k;
}

std::size_t Fit::frame_limit(std::size_t message_bytes) const {
  if (message_bytes <= classes[0].capacity() || classes.size() == 1) return classes[0].capacity();
  // The smallest class of which enough is in flight, so larger ones only where there are few buffers: small frames let
  // the copies of both ends and the way overlap.
  const std::size_t wanted = std::min(message_bytes, kWindowBytes);
  std::size_t k = 1;
  while (k + 1 < classes.size() && std::size_t{classes[k].sends} * classes[k].bytes < wanted) ++k;
  return classes[k].capacity();
}

std::uint32_t Fit::wire_bytes(std::size_t size_class, std::size_t payload_bytes) const {
  if (whole_buffers) return classes[size_class].bytes;
  const auto payload = static_cast<std::uint32_t>((payload_bytes + 7) / 8 * 8);
  return kPayloadAt + payload + kTrailerBytes;
}

Limits common(const Limits& one, const Limits& other) {
  const Limits a = bounded(one), b = bounded(other);
  Limits both;
  both.max_queue_pairs = std::min(a.max_queue_pairs, b.max_queue_pairs);
  both.max_regions = std::min(a.max_regions, b.max_regions);
  both.max_send_requests = std::min(a.max_send_requests, b.max_send_requests);
  both.max_receive_requests = std::min(a.max_receive_requests, b.max_receive_requests);
  both.max_completions = std::min(a.max_completions, b.max_completions);
  both.max_message_bytes = std::min(a.max_message_bytes, b.max_message_bytes);
  both.max_region_bytes = std::min(a.max_region_bytes, b.max_region_bytes);
  both.frame_bytes = std::max(a.frame_bytes, b.frame_bytes);
  return both;
}

Status fit(const LinkOptions& options, const Limits& limits, std::uint32_t cables, std::uint32_t links_per_device,
           Fit& out) {
  const std::uint32_t share = limits.max_queue_pairs / std::max(1U, links_per_device);
  if (share == 0) {
    return cannot(number(limits.max_queue_pairs) + " queue pairs, shared by " + number(links_per_device) + " links");
  }
  return with_queues(options, limits, cables, share, out);
}

Status with_queues(const LinkOptions& options, const Limits& stated, std::uint32_t cables, std::uint32_t queues,
                   Fit& out) {
  const Limits limits = bounded(stated);
  if (limits.max_regions == 0) return cannot("it has no memory regions");
  if (limits.frame_bytes != 0 && kPageBytes % limits.frame_bytes != 0) {
    return cannot("it counts frames of " + number(limits.frame_bytes) + " bytes, and only those that divide " +
                  number(kPageBytes) + " are known");
  }
  Fit fit;
  fit.cables = cables;
  fit.spare_receives = cables > 1 ? 1 : 0;
  fit.max_outstanding = options.max_outstanding;
  fit.whole_buffers = limits.frame_bytes != 0;

  std::vector<std::uint32_t> sizes = wanted_sizes(options);
  const std::size_t wanted = sizes.size();
  std::erase_if(sizes, [&](std::uint32_t bytes) {
    // Of each queue at least one send and one receive, and where there are several cables the spare one.
    const std::uint32_t least = 1 + fit.spare_receives;
    return bytes > limits.max_message_bytes || requests(limits, limits.max_send_requests, bytes) < 1 ||
           requests(limits, limits.max_receive_requests, bytes) < least || completions(limits, bytes) < 1 + least;
  });
  if (sizes.size() < wanted) {
    fit.notes.push_back(number(wanted - sizes.size()) + " of " + number(wanted) +
                        " buffer sizes are larger than the device sends at once");
  }
  if (sizes.empty()) {
    return cannot("not one buffer of " + number(wanted_sizes(options).front()) + " bytes can be posted: " +
                  number(limits.max_send_requests) + " send and " + number(limits.max_receive_requests) +
                  " receive requests, " + number(limits.max_completions) + " completions, messages of " +
                  number(limits.max_message_bytes) + " bytes");
  }
  const std::uint32_t most = std::min(queues, kMostQueues);
  if (sizes.size() > most) {
    fit.notes.push_back(number(most) + " of " + number(sizes.size()) + " buffer sizes: a link has " + number(most) +
                        " of the device's " + number(limits.max_queue_pairs) + " queue pairs");
    sizes = spread(sizes, most);
  }

  for (std::uint32_t buffers = options.num_buffers;; buffers /= 2) {
    if (buffers == 0) {
      return cannot("even one buffer of each size makes a region of more than " + number(limits.max_region_bytes) +
                    " bytes");
    }
    fit.classes.clear();
    bool cut = false;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      SizeClass k;
      k.bytes = sizes[i];
      const std::uint32_t reports = i == 0 ? kReportReceives : 0;
      const std::uint32_t usable = i == 0 ? std::max(buffers, kLeastEager) : buffers;
      k.sends = usable;
      k.receives = usable + reports + fit.spare_receives;
      k.send_requests = usable + (i == 0 ? kReportBuffers : 0);
      const std::uint32_t most_sends = requests(limits, limits.max_send_requests, k.bytes);
      const std::uint32_t most_receives = requests(limits, limits.max_receive_requests, k.bytes);
      if (k.send_requests > most_sends || k.receives > most_receives) cut = true;
      k.send_requests = std::min(k.send_requests, most_sends);
      k.receives = std::min(k.receives, most_receives);
      // One completion queue holds both directions of a queue pair.
      const std::uint32_t most_completions = completions(limits, k.bytes);
      if (std::uint64_t{k.send_requests} + k.receives > most_completions) {
        cut = true;
        k.send_requests = std::min(k.send_requests, std::max(1U, most_completions / 2));
        k.receives = std::min(k.receives, most_completions - k.send_requests);
      }
      // More buffers than the peer may post receives would never be in flight.
      const std::uint32_t kept_back = reports + fit.spare_receives;
      k.sends = std::min(k.sends, k.receives > kept_back ? k.receives - kept_back : 1);
      fit.classes.push_back(k);
    }
    const SizeClass& eager = fit.classes.front();
    if (eager.receives < 1 + kReportReceives + fit.spare_receives || eager.send_requests < 2) {
      return cannot("a queue of " + number(eager.bytes) + " bytes a buffer holds " + number(eager.receives) +
                    " receives and " + number(eager.send_requests) + " sends, and " +
                    number(1 + kReportReceives + fit.spare_receives) + " and 2 are the least");
    }
    if (fit.region_bytes() > limits.max_region_bytes) continue;
    if (cut) fit.notes.push_back("fewer buffers in flight than wanted: the device's queues hold no more");
    if (buffers < options.num_buffers) {
      fit.notes.push_back(number(buffers) + " of " + number(options.num_buffers) +
                          " buffers of each size: a region has at most " + number(limits.max_region_bytes) + " bytes");
    }
    out = std::move(fit);
    return {};
  }
}

}  // namespace mm::verbs
