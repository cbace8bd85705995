#include "fakeverbs/settings.h"

#include <cstdlib>
#include <stdexcept>
#include <type_traits>

namespace mm::fakeverbs {
namespace {

[[noreturn]] void wrong(std::string_view key, std::string_view value, const char* expected) {
  throw std::invalid_argument("fake verbs: " + std::string(key) + "=" + std::string(value) + ": expected " + expected);
}

template <typename Number>
void read(std::string_view key, std::string_view value, Number& into) {
  const std::string text(value);
  char* end = nullptr;
  if constexpr (std::is_same_v<Number, bool>) {
    if (text != "0" && text != "1") wrong(key, value, "0 or 1");
    into = text == "1";
  } else if constexpr (std::is_same_v<Number, double>) {
    into = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !(into >= 0 && into <= 1)) wrong(key, value, "a share from 0 to 1");
  } else {
    const unsigned long long number = std::strtoull(text.c_str(), &end, 10);
    into = static_cast<Number>(number);
    if (text.empty() || text.front() == '-' || *end != '\0' || into != number) wrong(key, value, "a whole number");
  }
}

std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const auto at = text.find_first_of(separators);
    if (at != 0) parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) break;
    text.remove_prefix(at + 1);
  }
  return parts;
}

Plug read_plug(std::string_view text) {
  const auto dot = text.find('.');
  constexpr std::size_t kLongest = 30;
  if (dot == std::string_view::npos || dot == 0 || dot + 1 == text.size() || text.size() > kLongest) {
    wrong("cables", text, "host.device");
  }
  return {std::string(text.substr(0, dot)), std::string(text.substr(dot + 1))};
}

std::vector<Cable> read_cables(std::string_view text) {
  std::vector<Cable> cables;
  for (const auto part : split(text, ",")) {
    const auto dash = part.find('-');
    if (dash == std::string_view::npos) wrong("cables", part, "host.device-host.device");
    cables.push_back({{read_plug(part.substr(0, dash)), read_plug(part.substr(dash + 1))}});
  }
  return cables;
}

Settings flavour(std::string_view name) {
  Settings settings;
  if (name == "apple") return settings;
  if (name != "linux") wrong("flavour", name, "apple or linux");
  settings.queue_pairs = 1024;
  settings.regions = 4096;
  settings.requests = 16384;
  settings.message_bytes = std::uint64_t{1} << 30;
  settings.frame_bytes = 0;
  settings.equal_frames = false;
  settings.thunderbolt = false;
  settings.reliable = true;
  settings.receive_before_ready = true;
  return settings;
}

}  // namespace

void apply(Settings& settings, std::string_view key, std::string_view value) {
#define MACMESH_FIELD(name) \
  if (key == #name) return read(key, value, settings.name);
  MACMESH_FIELD(queue_pairs)
  MACMESH_FIELD(regions)
  MACMESH_FIELD(requests)
  MACMESH_FIELD(completions)
  MACMESH_FIELD(message_bytes)
  MACMESH_FIELD(region_bytes)
  MACMESH_FIELD(frame_bytes)
  MACMESH_FIELD(equal_frames)
  MACMESH_FIELD(thunderbolt)
  MACMESH_FIELD(reliable)
  MACMESH_FIELD(receive_before_ready)
  MACMESH_FIELD(flow_control)
  MACMESH_FIELD(events)
  MACMESH_FIELD(addresses)
  MACMESH_FIELD(cut_refuses)
  MACMESH_FIELD(rights)
  MACMESH_FIELD(latency_ns)
  MACMESH_FIELD(bytes_per_second)
  MACMESH_FIELD(jitter_ns)
  MACMESH_FIELD(retry_ns)
  MACMESH_FIELD(slowdown)
  MACMESH_FIELD(manual_clock)
  MACMESH_FIELD(seed)
  MACMESH_FIELD(loss)
  MACMESH_FIELD(corrupt)
  MACMESH_FIELD(torn)
  MACMESH_FIELD(send_errors)
  MACMESH_FIELD(receive_errors)
  MACMESH_FIELD(pool_bytes)
#undef MACMESH_FIELD
  throw std::invalid_argument("fake verbs: there is no setting " + std::string(key));
}

Plan parse_plan(std::string_view text) {
  Plan plan;
  for (const auto part : split(text, ";\n")) {
    const auto equals = part.find('=');
    if (equals == std::string_view::npos) wrong(part, "", "key=value");
    const auto key = part.substr(0, equals);
    const auto value = part.substr(equals + 1);
    if (key == "flavour") {
      plan.settings = flavour(value);
    } else if (key == "cables") {
      plan.cables = read_cables(value);
    } else if (key == "loose") {
      for (const auto plug : split(value, ",")) plan.loose.push_back(read_plug(plug));
    } else {
      apply(plan.settings, key, value);
    }
  }
  if (plan.settings.slowdown == 0) wrong("slowdown", "0", "at least 1");
  return plan;
}

}  // namespace mm::fakeverbs
