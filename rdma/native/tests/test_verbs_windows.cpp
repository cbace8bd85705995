// The two windows against each other over a simulated device, in virtual time.
#include <chrono>
#include <deque>
#include <optional>
#include <random>

#include "tests/check.h"
#include "verbs/link_receive_window.h"
#include "verbs/link_send_window.h"

using namespace mm;
using namespace mm::verbs;
using namespace std::chrono_literals;

namespace {

struct World {
  std::uint32_t cables = 1;
  double loss = 0;          // of frames
  double report_loss = 0;   // of reports that nobody asked for
  double broken = 0;
  std::uint32_t num_buffers = 2;
  std::uint32_t max_outstanding = 16;
  std::uint32_t drop_cable_at = 0;  // a frame's number; 0: never
  bool slow = false;                // frames travel for longer than it takes to ask
};

// One direction: the frames go through queues that keep their order, each with the receives that are posted.
struct Simulation {
  struct InFlight {
    SendWindow::Posting posting;
    bool lost;
  };
  World world;
  Fit fit;
  SendWindow sender;
  ReceiveWindow receiver;
  std::mt19937 random;
  Clock::time_point now{};
  std::vector<std::deque<InFlight>> queues;
  std::vector<std::uint32_t> receives;  // posted and free
  std::vector<bool> alive;
  std::uint64_t without_receive = 0;
  std::uint64_t delivered = 0;
  std::uint64_t kept = 0;  // in receives
  std::optional<std::uint32_t> asked;

  static Fit fit_of(const World& world) {
    LinkOptions options;
    options.num_buffers = world.num_buffers;
    options.frame_bytes = 16384;
    options.buffer_sizes = 2;
    options.max_outstanding = world.max_outstanding;
    Fit out;
    CHECK(verbs::fit(options, {100, 100, 1000, 1000, 5000, 1 << 30, 1 << 30, 0}, world.cables, 1, out).ok());
    return out;
  }

  Simulation(const World& wanted, std::uint32_t seed)
      : world(wanted),
        fit(fit_of(wanted)),
        sender(fit, 5ms, 1000),
        receiver(fit.cables, static_cast<std::uint32_t>(fit.classes.size()), fit.max_outstanding),
        random(seed),
        queues(fit.cables * fit.classes.size()),
        receives(queues.size()),
        alive(fit.cables, true) {
    for (std::uint32_t cable = 0; cable < fit.cables; ++cable) {
      for (std::uint32_t k = 0; k < fit.classes.size(); ++k) {
        receiver.posted(cable, k, fit.classes[k].receives);
        receives[index(cable, k)] = fit.classes[k].receives;
      }
    }
  }
  [[nodiscard]] std::size_t index(std::uint32_t cable, std::uint32_t k) const { return cable * fit.classes.size() + k; }
  bool strikes(double probability) {
    return probability > 0 && std::uniform_real_distribution<>(0, 1)(random) < probability;
  }

  void send() {
    const auto k = static_cast<std::uint32_t>(random() % fit.classes.size());
    if (sender.has_room(k)) {
      const auto opened = sender.open(k);
      sender.filled(opened.sequence, static_cast<std::uint32_t>(opened.sequence), WireKind::kData);
    }
    post();
  }
  void post() {
    SendWindow::Posting posting;
    while (sender.next(posting)) {
      CHECK(alive[posting.cable]);
      queues[index(posting.cable, posting.size_class)].push_back({posting, strikes(world.loss)});
      if (world.slow) sender.completed(posting.cable, posting.size_class, posting.queue_number, now);
    }
  }
  void carry() {
    const std::size_t i = random() % queues.size();
    auto& queue = queues[i];
    if (queue.empty()) return;
    const InFlight first = queue.front();
    queue.pop_front();
    const auto& p = first.posting;
    if (alive[p.cable]) sender.completed(p.cable, p.size_class, p.queue_number, now);
    if (first.lost || !alive[p.cable]) return;
    if (receives[i] == 0) {
      ++without_receive;
      return;
    }
    if (strikes(world.broken)) {
      receiver.broken();
      return;  // posted again at once
    }
    --receives[i];
    CHECK(receiver.numbered(p.cable, p.size_class, p.queue_number));
    switch (receiver.data(p.sequence, {p.cable, p.size_class, 0, p.payload_bytes})) {
      case ReceiveWindow::Verdict::kKept: break;
      case ReceiveWindow::Verdict::kRepeated:
        ++receives[i];
        receiver.reposted(p.cable, p.size_class);
        break;
      case ReceiveWindow::Verdict::kImpossible: CHECK(false);
    }
    if (receiver.gap()) CHECK(sender.report(receiver.report(), now));  // over the control socket, which loses nothing
  }
  void take() {
    if (receiver.front() == nullptr) return;
    const auto place = receiver.take();
    CHECK(place.payload_bytes == static_cast<std::uint32_t>(delivered));
    ++delivered;
    if (alive[place.cable]) ++receives[index(place.cable, place.queue)];
    receiver.reposted(place.cable, place.queue);
    if (random() % 2 == 0 && !strikes(world.report_loss)) CHECK(sender.report(receiver.report(), now));
    if (world.drop_cable_at != 0 && delivered == world.drop_cable_at) {
      alive[0] = false;
      sender.drop_cable(0);
      for (std::uint32_t k = 0; k < fit.classes.size(); ++k) queues[index(0, k)].clear();
    }
  }
  void tick() {
    now += 1ms;
    if (asked.has_value()) {
      Report report = receiver.report();
      report.answers = *asked;
      asked.reset();
      CHECK(sender.report(report, now));
    } else if (sender.wants_probe(now, true)) {
      asked = sender.probe(now);
    }
    post();
  }

  void run(std::uint64_t frames) {
    for (std::uint64_t step = 0; delivered < frames; ++step) {
      CHECK_TEXT(step < frames * 4000, "stuck at " + std::to_string(delivered));
      switch (random() % 8) {
        case 0:
        case 1: send(); break;
        case 2:
        case 3:
        case 4: carry(); break;
        case 5:
        case 6: take(); break;
        default: tick();
      }
    }
  }
};

}  // namespace

TEST(every_frame_is_delivered_once_and_in_order) {
  const World worlds[] = {
      {},
      {.num_buffers = 1, .max_outstanding = 1},
      {.num_buffers = 8, .max_outstanding = 64},
      {.cables = 3, .num_buffers = 1},
      {.report_loss = 0.5},
  };
  for (const World& world : worlds) {
    for (std::uint32_t seed = 0; seed < 5; ++seed) {
      Simulation simulation(world, seed);
      simulation.run(800);
      CHECK(simulation.sender.retransmitted() == 0 && simulation.without_receive == 0);
    }
  }
}

TEST(losses_of_all_kinds_cost_only_time) {
  const World worlds[] = {
      {.loss = 1e-2},
      {.loss = 0.2},
      {.loss = 0.2, .num_buffers = 1, .max_outstanding = 2},
      {.cables = 2, .loss = 0.2, .num_buffers = 1},
      {.cables = 3, .loss = 0.1, .report_loss = 0.3, .broken = 0.05, .num_buffers = 4, .max_outstanding = 64},
      {.broken = 0.2},
      {.loss = 0.05, .slow = true},
      {.cables = 2, .loss = 0.05, .num_buffers = 1, .slow = true},
  };
  for (const World& world : worlds) {
    for (std::uint32_t seed = 0; seed < 8; ++seed) {
      Simulation simulation(world, seed);
      simulation.run(400);
      CHECK(simulation.sender.retransmitted() > 0);
    }
  }
}

TEST(a_dropped_cable_leaves_its_frames_to_the_others) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    World world;
    world.cables = 2;
    world.loss = seed % 2 == 0 ? 0 : 0.05;
    world.num_buffers = 1 + seed % 3;
    world.drop_cable_at = 100;
    Simulation simulation(world, seed);
    simulation.run(400);
  }
}

TEST(a_lost_last_frame_is_asked_for) {
  Simulation simulation({}, 1);
  const auto opened = simulation.sender.open(1);
  simulation.sender.filled(opened.sequence, 0, WireKind::kData);
  SendWindow::Posting posting;
  CHECK(simulation.sender.next(posting));
  simulation.sender.completed(posting.cable, 1, posting.queue_number, simulation.now);
  CHECK(!simulation.sender.wants_probe(simulation.now, false));
  simulation.now += 6ms;
  CHECK(simulation.sender.wants_probe(simulation.now, false));
  Report report = simulation.receiver.report();
  CHECK(simulation.sender.report(report, simulation.now) && !simulation.sender.next(posting));  // no answer
  report.answers = simulation.sender.probe(simulation.now);
  CHECK(!simulation.sender.wants_probe(simulation.now + 10s, false));  // one at a time
  CHECK(simulation.sender.report(report, simulation.now));
  CHECK(simulation.sender.next(posting) && posting.sequence == 0 && posting.queue_number == 1);
  CHECK(simulation.sender.fruitless(0) == 1);
}

TEST(a_send_that_has_not_left_the_device_is_not_taken_for_lost) {
  Simulation simulation({}, 1);
  const auto opened = simulation.sender.open(1);
  simulation.sender.filled(opened.sequence, 0, WireKind::kData);
  SendWindow::Posting posting;
  CHECK(simulation.sender.next(posting));
  CHECK(!simulation.sender.wants_probe(simulation.now, false));
  for (int i = 0; i < 5; ++i) {
    simulation.now += 1s;
    CHECK(simulation.sender.wants_probe(simulation.now, false));
    Report report = simulation.receiver.report();
    report.answers = simulation.sender.probe(simulation.now);
    CHECK(simulation.sender.report(report, simulation.now) && !simulation.sender.next(posting));
  }
}

TEST(a_frame_that_never_arrives_becomes_hopeless) {
  const Fit fit = Simulation::fit_of({});
  SendWindow sender(fit, 5ms, 3);
  ReceiveWindow receiver(1, static_cast<std::uint32_t>(fit.classes.size()), 16);
  for (std::uint32_t k = 0; k < fit.classes.size(); ++k) receiver.posted(0, k, fit.classes[k].receives);
  Clock::time_point now{};
  sender.filled(sender.open(1).sequence, 0, WireKind::kData);
  SendWindow::Posting posting;
  CHECK(!sender.wants_probe(now, false));
  for (int i = 0; i < 3; ++i) {
    CHECK(sender.hopeless().empty() && sender.next(posting));
    sender.completed(0, 1, posting.queue_number, now);
    now += 1s;
    CHECK(sender.wants_probe(now, false));
    Report report = receiver.report();
    report.answers = sender.probe(now);
    CHECK(sender.report(report, now));
  }
  CHECK(sender.hopeless().find("lost 3 times") != std::string::npos);
}

TEST(reports_that_cannot_be_are_refused) {
  Simulation simulation({}, 1);
  simulation.sender.filled(simulation.sender.open(1).sequence, 0, WireKind::kData);
  SendWindow::Posting posting;
  CHECK(simulation.sender.next(posting));
  const Report honest = simulation.receiver.report();
  const auto refused = [&](auto spoil) {
    Report report = honest;
    spoil(report);
    SendWindow copy = simulation.sender;
    return !copy.report(report, simulation.now);
  };
  CHECK(refused([](Report& r) { r.arrived_to = 2; }));
  CHECK(refused([](Report& r) { r.ranges.emplace_back(1, 2); }));
  CHECK(refused([](Report& r) { r.queues.pop_back(); }));
  CHECK(refused([](Report& r) { r.queues[1].next = 2; }));
  CHECK(refused([](Report& r) { r.queues[1].lost = 1; }));
  CHECK(refused([](Report& r) { r.queues[1].posted = 1000; }));
  CHECK(!refused([](Report&) {}));
  simulation.sender.open(1);  // a frame that is still being filled cannot have arrived
  CHECK(refused([](Report& r) { r.arrived_to = 2; }));

  CHECK(!simulation.receiver.numbered(0, 0, 1U << 30));
  CHECK(simulation.receiver.data(16, {}) == ReceiveWindow::Verdict::kImpossible);
}

CHECK_MAIN
