// What travels over a cable, and what a link has of a device.
#include <algorithm>
#include <random>

#include "tests/check.h"
#include "verbs/link_fit.h"
#include "verbs/link_wire.h"
#include "verbs/queue_depth.h"

using namespace mm;
using namespace mm::verbs;

namespace {

Limits ample() { return {1000, 1000, 16384, 16384, 65536, 1U << 30, std::uint64_t{1} << 40, 0}; }

// As Apple's devices have been seen.
Limits apple() { return {10, 100, 4095, 4095, 65535, 16773120, std::uint64_t{1} << 40, 4096}; }

LinkOptions seeds() { return {}; }

LinkOptions stock() {
  LinkOptions options;
  options.num_buffers = 2;
  options.frame_bytes = 4096;
  options.buffer_sizes = 8;
  options.max_outstanding = 32;
  return options;
}

Fit fitted(const LinkOptions& options, const Limits& limits, std::uint32_t cables = 1, std::uint32_t links = 2) {
  Fit out;
  const Status status = fit(options, limits, cables, links, out);
  CHECK_TEXT(status.ok(), status.text());
  return out;
}

std::string refusal(const LinkOptions& options, const Limits& limits, std::uint32_t cables = 1) {
  Fit out;
  const Status status = fit(options, limits, cables, 2, out);
  CHECK(!status.ok() && status.code() == Code::kLocal);
  return status.text();
}

// Nothing overlaps, all lies in the region and on pages, and no queue holds more than the device can.
void check_layout(const Fit& fit, const Limits& limits) {
  std::vector<std::pair<std::size_t, std::size_t>> parts;
  for (std::size_t k = 0; k < fit.classes.size(); ++k) {
    const SizeClass& of = fit.classes[k];
    CHECK(of.bytes % kPageBytes == 0 && of.sends >= 1 && of.receives >= 1 + fit.spare_receives);
    const std::string excess = too_much(limits, {Mode::kUC, of.send_requests, of.receives, of.bytes});
    CHECK_TEXT(excess.empty(), excess);
    for (std::uint32_t i = 0; i < fit.send_slots(k); ++i) parts.emplace_back(fit.send_offset(k, i), of.bytes);
    for (std::uint32_t cable = 0; cable < fit.cables; ++cable) {
      for (std::uint32_t i = 0; i < of.receives; ++i) parts.emplace_back(fit.receive_offset(cable, k, i), of.bytes);
    }
  }
  for (std::uint32_t cable = 0; cable < fit.cables; ++cable) {
    for (std::uint32_t i = 0; i < kReportBuffers; ++i) {
      parts.emplace_back(fit.report_offset(cable, i), fit.classes[0].bytes);
    }
  }
  std::sort(parts.begin(), parts.end());
  std::size_t end = 0;
  for (const auto& [offset, bytes] : parts) {
    CHECK(offset == end && offset % kPageBytes == 0);
    end = offset + bytes;
  }
  CHECK(end == fit.region_bytes() && (limits.max_region_bytes == 0 || end <= limits.max_region_bytes));
}

}  // namespace

TEST(a_prefix_survives_the_way_and_no_alteration_does) {
  std::vector<std::byte> buffer(8192, std::byte{7});
  Prefix prefix;
  prefix.kind = WireKind::kData;
  prefix.cable = 1;
  prefix.queue = 3;
  prefix.link = 0xDEADBEEF;
  prefix.payload_bytes = 1000;
  prefix.sequence = 1ULL << 40;
  prefix.queue_number = 0xFFFFFFFE;
  prefix.arrived_to = 99;
  prefix.posted = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  FrameHeader header;
  header.message_bytes = header.frame_bytes = 1000;
  encode_header(header, std::span(buffer).subspan<kPrefixBytes, kFrameHeaderBytes>());
  const std::uint32_t wire_bytes = kPayloadAt + 1000 + kTrailerBytes;
  encode_prefix(prefix, buffer, wire_bytes);
  const auto sent = std::span<const std::byte>(buffer).first(wire_bytes);
  Prefix came;
  CHECK(decode_prefix(sent, came));
  CHECK(came.kind == prefix.kind && came.cable == 1 && came.queue == 3 && came.link == prefix.link);
  CHECK(came.payload_bytes == 1000 && came.sequence == prefix.sequence && came.queue_number == prefix.queue_number);
  CHECK(came.arrived_to == 99 && came.posted == prefix.posted);

  for (std::size_t bit = 0; bit < (kPrefixBytes + kFrameHeaderBytes) * 8; ++bit) {
    buffer[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    CHECK_TEXT(!decode_prefix(sent, came), std::to_string(bit));
    buffer[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
  }
  // Another length, or the end of an earlier frame.
  CHECK(!decode_prefix(sent.first(wire_bytes - 8), came));
  CHECK(!decode_prefix(std::span<const std::byte>(buffer).first(wire_bytes + 8), came));
  CHECK(!decode_prefix(sent.first(10), came) && !decode_prefix({}, came));
  std::vector<std::byte> trailer(buffer.begin() + wire_bytes - kTrailerBytes, buffer.begin() + wire_bytes);
  ++prefix.queue_number;  // the same frame, sent again
  encode_prefix(prefix, buffer, wire_bytes);
  CHECK(decode_prefix(sent, came));
  std::copy(trailer.begin(), trailer.end(), buffer.begin() + wire_bytes - kTrailerBytes);
  CHECK(!decode_prefix(sent, came));
}

TEST(a_report_survives_the_way) {
  Report report;
  report.arrived_to = 12;
  for (std::uint64_t i = 0; i < Report::kMostRanges; ++i) report.ranges.emplace_back(20 + 3 * i, 22 + 3 * i);
  report.known_to = 1000;
  for (std::uint64_t i = 0; i < kMostQueues * kMostCables; ++i) report.queues.push_back({i, 1ULL << 40, i / 2});
  report.answers = 77;
  report.asleep = true;
  const std::string bytes = encode_report(report);
  CHECK(bytes.size() <= kMostReportBytes);
  Report came;
  CHECK(decode_report(std::as_bytes(std::span(bytes)), came));
  CHECK(came.arrived_to == 12 && came.ranges == report.ranges && came.known_to == 1000 && came.answers == 77);
  CHECK(came.queues.size() == report.queues.size() && came.queues[9].posted == 1ULL << 40 && came.asleep);
  for (std::size_t cut = 0; cut < bytes.size(); ++cut) {
    CHECK(!decode_report(std::as_bytes(std::span(bytes)).first(cut), came));
  }
  const std::string longer = bytes + "x";
  CHECK(!decode_report(std::as_bytes(std::span(longer)), came));
  std::mt19937 random(5);
  for (int i = 0; i < 20000; ++i) {
    std::string spoilt = bytes.substr(0, random() % (bytes.size() + 1));
    for (int n = 0; n < 4 && !spoilt.empty(); ++n) spoilt[random() % spoilt.size()] = static_cast<char>(random());
    if (!decode_report(std::as_bytes(std::span(spoilt)), came)) continue;
    std::uint64_t end = came.arrived_to;
    for (const auto& [from, to] : came.ranges) {
      CHECK(from >= end && to > from);
      end = to;
    }
  }
}

TEST(an_echo_is_of_its_seed_alone) {
  for (const std::size_t bytes : {0, 1, 7, 8, 9, 4000}) {
    std::vector<std::byte> data(bytes);
    fill_echo_pattern(42, data);
    CHECK(is_echo_pattern(42, data));
    if (bytes == 0) continue;
    CHECK(!is_echo_pattern(43, data));
    data[bytes - 1] ^= std::byte{1};
    CHECK(!is_echo_pattern(42, data));
  }
}

TEST(the_seeds_and_stock_settings_fit_an_ample_device) {
  const Fit fit = fitted(seeds(), ample());
  check_layout(fit, ample());
  CHECK(fit.classes.size() == 7 && fit.notes.empty() && !fit.whole_buffers);
  CHECK(fit.classes[0].bytes == 8192 && fit.classes[1].bytes == 65536 && fit.classes[6].bytes == 2 << 20);
  for (std::size_t k = 1; k < 7; ++k) CHECK(fit.classes[k].sends == 8 && fit.classes[k].receives == 8);
  // Both directions of the seeds' buffers, and the small ones: 8 to send, 4 for reports, 10 to receive.
  CHECK(fit.region_bytes() == 2 * seeds().buffer_bytes() + 22 * 8192);

  const Fit small = fitted(stock(), ample());
  check_layout(small, ample());
  CHECK(small.classes.size() == 8 && small.classes[0].bytes == 4096 && small.classes[7].bytes == 524288);
}

TEST(a_frame_is_small_where_many_are_in_flight) {
  const Fit fit = fitted(seeds(), ample());
  CHECK(fit.frame_limit(6144) == 8192 - kOverheadBytes);
  CHECK(fit.frame_limit(65536) == 65536 - kOverheadBytes);
  CHECK(fit.frame_limit(12 << 20) == 131072 - kOverheadBytes);
  const Fit small = fitted(stock(), ample());
  CHECK(small.frame_limit(1) == 4096 - kOverheadBytes);
  CHECK(small.frame_limit(6144) == 8192 - kOverheadBytes);
  CHECK(small.frame_limit(12 << 20) == 524288 - kOverheadBytes);
  LinkOptions one = seeds();
  one.num_buffers = 1;
  CHECK(fitted(one, ample()).frame_limit(12 << 20) == (1 << 20) - kOverheadBytes);
  for (const std::size_t bytes : {0, 1, 5000, 9000, 70000, 1 << 20}) {
    const std::size_t k = fit.class_for(bytes);
    CHECK(bytes <= fit.classes[k].capacity() && (k == 0 || bytes > fit.classes[k - 1].capacity()));
    CHECK(fit.wire_bytes(k, bytes) <= fit.classes[k].bytes && fit.wire_bytes(k, bytes) % 8 == 0);
  }
}

TEST(few_queue_pairs_make_few_sizes) {
  const Fit fit = fitted(seeds(), apple());
  check_layout(fit, apple());
  CHECK(fit.whole_buffers && fit.wire_bytes(0, 1) == 8192);
  CHECK(fit.classes.size() == 5 && fit.classes.front().bytes == 8192 && fit.classes.back().bytes == 2 << 20);
  CHECK(!fit.notes.empty() && fit.notes[0].find("5 of 7") != std::string::npos);
  // 4,095 places hold 7 receives of 512 frames each.
  CHECK(fit.classes.back().receives == 7);
  for (std::uint32_t pairs = 2; pairs <= 20; ++pairs) {
    Limits limits = apple();
    limits.max_queue_pairs = pairs;
    const Fit few = fitted(seeds(), limits);
    check_layout(few, limits);
    CHECK(few.classes.size() == std::min(pairs / 2, 7U));
    // A frame of any limit that it names has a buffer.
    for (const std::size_t bytes : {1, 6144, 65536, 12 << 20}) {
      CHECK(few.class_for(few.frame_limit(bytes)) < few.classes.size());
    }
  }
}

TEST(whatever_fits_is_laid_out_soundly_and_else_says_why) {
  std::mt19937 random(11);
  int fits = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto upto = [&random](std::uint32_t most) { return static_cast<std::uint32_t>(random() % most) + 1; };
    LinkOptions options;
    options.num_buffers = upto(70);
    options.frame_bytes = 64 * upto(2048);
    options.buffer_sizes = upto(8);
    options.max_outstanding = upto(300);
    Limits limits;
    limits.max_queue_pairs = upto(30);
    limits.max_regions = upto(100);
    limits.max_send_requests = upto(5000);
    limits.max_receive_requests = upto(5000);
    limits.max_completions = upto(9000);
    limits.max_message_bytes = std::uint64_t{4096} * upto(5000);
    limits.max_region_bytes = std::uint64_t{1} << upto(36);
    limits.frame_bytes = random() % 2 == 0 ? 0 : 4096;
    // Zero is no bound.
    if (random() % 8 == 0) limits.max_send_requests = limits.max_receive_requests = 0;
    if (random() % 8 == 0) limits.max_completions = 0;
    if (random() % 8 == 0) limits.max_message_bytes = limits.max_region_bytes = 0;
    const std::uint32_t cables = upto(3);
    Fit out;
    const Status status = fit(options, limits, cables, 2, out);
    if (!status.ok()) {
      CHECK(status.text().find("no verbs link fits") != std::string::npos);
      continue;
    }
    ++fits;
    check_layout(out, limits);
    CHECK(out.cables == cables && out.classes.size() <= std::min(limits.max_queue_pairs / 2, kMostQueues));
  }
  CHECK_TEXT(fits > 500, std::to_string(fits));
}

TEST(too_little_is_refused_with_the_reason) {
  Limits limits = apple();
  limits.max_queue_pairs = 1;
  CHECK(refusal(seeds(), limits).find("1 queue pairs, shared by 2 links") != std::string::npos);
  limits = apple();
  limits.max_region_bytes = 100000;
  CHECK(refusal(seeds(), limits).find("100000 bytes") != std::string::npos);
  limits = apple();
  limits.max_receive_requests = 1;
  CHECK(refusal(seeds(), limits).find("1 receive requests") != std::string::npos);
  limits = apple();
  limits.max_regions = 0;
  CHECK(refusal(seeds(), limits).find("memory regions") != std::string::npos);
  // A smaller region has fewer buffers, and says so.
  limits = apple();
  limits.max_region_bytes = 16 << 20;
  const Fit fit = fitted(seeds(), limits);
  check_layout(fit, limits);
  CHECK(fit.notes.back().find("of 8 buffers") != std::string::npos);
}

CHECK_MAIN
