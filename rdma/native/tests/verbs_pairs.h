#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/check.h"
#include "tests/fake_queue_pairs.h"
#include "tests/sockets.h"
#include "verbs/verbs_link.h"

// Pairs of verbs links over queue pairs within one process.
namespace verbs_pairs {

struct Wanted {
  mm::LinkOptions options;
  mm::verbs::LinkSettings settings;
  mm::verbs::Limits limits = fake_verbs::ample();
  fake_verbs::Faults faults;
  std::size_t cables = 1;
};

struct Joined {
  std::unique_ptr<mm::verbs::VerbsLink> a;
  std::unique_ptr<mm::verbs::VerbsLink> b;
  mm::Status why_a;
  mm::Status why_b;
  std::vector<std::shared_ptr<fake_verbs::Wire>> wires;
};

inline std::vector<std::shared_ptr<fake_verbs::Wire>> wires(const Wanted& wanted) {
  std::vector<std::shared_ptr<fake_verbs::Wire>> made;
  for (std::size_t i = 0; i < wanted.cables; ++i) {
    fake_verbs::Faults faults = wanted.faults;
    faults.seed += static_cast<std::uint32_t>(i);
    made.push_back(std::make_shared<fake_verbs::Wire>(faults));
  }
  return made;
}

inline std::vector<mm::verbs::Cable> ends(const std::vector<std::shared_ptr<fake_verbs::Wire>>& wires,
                                          const mm::verbs::Limits& limits, const std::string& side) {
  std::vector<mm::verbs::Cable> cables;
  for (std::size_t i = 0; i < wires.size(); ++i) {
    const std::string name = "fake" + std::to_string(i) + side;
    cables.push_back({std::make_unique<fake_verbs::FakeDevice>(wires[i], name, limits), name + " port 1"});
  }
  return cables;
}

// Both ends, which may want different things.
inline Joined join(const Wanted& a, const Wanted& b, double seconds = 20,
                   std::vector<std::shared_ptr<fake_verbs::Wire>> over = {}) {
  Joined joined;
  joined.wires = over.empty() ? wires(a) : std::move(over);
  const pairs::Sockets control = pairs::tcp_sockets();
  std::thread other([&] {
    auto cables = ends(joined.wires, b.limits, "b");
    cables.resize(b.cables < cables.size() ? b.cables : cables.size());
    joined.b = mm::verbs::verbs_link(control.b, std::move(cables), b.options, b.settings,
                                     mm::Deadline::after(seconds), joined.why_b);
  });
  joined.a = mm::verbs::verbs_link(control.a, ends(joined.wires, a.limits, "a"), a.options, a.settings,
                                   mm::Deadline::after(seconds), joined.why_a);
  other.join();
  return joined;
}

inline Joined join(const Wanted& wanted = {}) {
  Joined joined = join(wanted, wanted);
  CHECK_TEXT(joined.a && joined.b, joined.why_a.text() + " / " + joined.why_b.text());
  return joined;
}

}  // namespace verbs_pairs
