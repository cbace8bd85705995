#include "fakeverbs/control.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>

#include "fakeverbs/exports.h"
#include "fakeverbs/fabric.h"

namespace mm::fakeverbs {
namespace {

template <typename Work>
int answering(char* answer, std::size_t room, Work work) {
  std::string text;
  int result = 0;
  try {
    text = work();
  } catch (const std::exception& error) {
    text = error.what();
    result = -1;
  }
  if (answer != nullptr && room != 0) std::snprintf(answer, room, "%s", text.c_str());
  return result;
}

template <typename Number>
Number next_number(std::istringstream& words, const char* what, std::uint64_t below) {
  std::uint64_t number = 0;
  if (!(words >> number) || number >= below) {
    throw std::invalid_argument("fake verbs: expected " + std::string(what) + " below " + std::to_string(below));
  }
  return static_cast<Number>(number);
}

std::string counters_text(const Segment& segment) {
  std::ostringstream text;
  for (std::uint32_t i = 0; i < segment.cables_count; ++i) {
    for (std::uint32_t end = 0; end < 2; ++end) {
      const Counters& c = segment.cables[i].from[end].counters;
      const auto line = [&](const char* key, std::uint64_t value) {
        text << "cable" << i << ".end" << end << '.' << key << '=' << value << '\n';
      };
      line("messages", c.messages);
      line("bytes", c.bytes);
      line("delivered", c.delivered);
      line("lost", c.lost);
      line("no_receive", c.no_receive);
      line("corrupted", c.corrupted);
      line("torn", c.torn);
      line("length_errors", c.length_errors);
    }
  }
  const auto in_use = [](const auto& records) {
    return std::count_if(std::begin(records), std::end(records), [](const auto& record) { return record.used; });
  };
  text << "queue_pairs=" << in_use(segment.queue_pairs) << "\nregions=" << in_use(segment.regions)
       << "\nfree_blocks=" << segment.free_blocks << "\nblocks=" << segment.blocks_count << '\n';
  return text.str();
}

std::string run(const std::string& name, const std::string& command) {
  Mapped mapped(name);
  Segment& segment = mapped.segment();
  std::istringstream words(command);
  std::string verb;
  words >> verb;
  const Locked locked(segment);
  if (verb == "cut" || verb == "join") {
    auto& cable = segment.cables[next_number<std::uint32_t>(words, "a cable", segment.cables_count)];
    if (verb == "cut" && cable.up) cable.cut_at = fabric_now(segment);
    cable.up = verb == "join";
    rouse_all(mapped);
    return {};
  }
  if (verb == "lose") {
    auto& cable = segment.cables[next_number<std::uint32_t>(words, "a cable", segment.cables_count)];
    auto& direction = cable.from[next_number<std::uint32_t>(words, "an end", 2)];
    direction.lose_next = next_number<std::uint64_t>(words, "a count", kNever);
    return {};
  }
  if (verb == "set") {
    std::string setting;
    words >> setting;
    const auto equals = setting.find('=');
    if (equals == std::string::npos) throw std::invalid_argument("fake verbs: set expects key=value");
    apply(segment.settings, setting.substr(0, equals), setting.substr(equals + 1));
    rouse_all(mapped);
    return {};
  }
  if (verb == "advance") {
    if (!segment.settings.manual_clock) throw std::invalid_argument("fake verbs: the clock is not a manual one");
    segment.manual_ns += next_number<std::uint64_t>(words, "nanoseconds", kNever);
    rouse_all(mapped);
    return {};
  }
  if (verb == "now") return "now=" + std::to_string(fabric_now(segment)) + "\n";
  if (verb == "counters") {
    bury_the_dead(mapped);
    return counters_text(segment);
  }
  throw std::invalid_argument("fake verbs: there is no command " + verb);
}

}  // namespace

EXPORT int macmesh_fakeverbs_create(const char* name, const char* plan, char* answer, std::size_t room) {
  return answering(answer, room, [&] {
    Mapped::create(name, parse_plan(plan));
    return std::string();
  });
}

EXPORT int macmesh_fakeverbs_remove(const char* name, char* answer, std::size_t room) {
  return answering(answer, room, [&] {
    std::string path = *name == '/' ? "" : "/";
    path += name;
    if (::shm_unlink(path.c_str()) != 0) {
      throw std::system_error(errno, std::generic_category(), "fake verbs: removing the segment " + path);
    }
    return std::string();
  });
}

EXPORT int macmesh_fakeverbs_command(const char* name, const char* command, char* answer, std::size_t room) {
  return answering(answer, room, [&] { return run(name, command); });
}

}  // namespace mm::fakeverbs
