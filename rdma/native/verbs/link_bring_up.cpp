#include <random>
#include <stdexcept>

#include "verbs/link_bytes.h"
#include "verbs/verbs_link.h"

namespace mm::verbs {
namespace {

constexpr std::uint32_t kHelloMagic = 0x4C564D4D;  // "MMVL"
constexpr std::uint16_t kHelloVersion = 1;

// What each end says of itself first.
struct Hello {
  ModeChoice mode = ModeChoice::kAuto;
  std::uint64_t nonce = 0;
  std::string build;
  LinkOptions options;
  std::uint32_t links_per_device = 1;
  std::vector<Limits> limits;  // of each cable's device
  std::vector<std::string> names;
};

std::string encode(const Hello& hello) {
  ByteWriter out;
  out.number(kHelloMagic).number(kHelloVersion).number(static_cast<std::uint8_t>(hello.mode)).number(hello.nonce);
  out.text(hello.build);
  const LinkOptions& o = hello.options;
  out.number(o.num_buffers).number(o.frame_bytes).number(o.buffer_sizes).number(o.max_outstanding);
  out.number(hello.links_per_device).number(static_cast<std::uint8_t>(hello.limits.size()));
  for (std::size_t i = 0; i < hello.limits.size(); ++i) {
    const Limits& l = hello.limits[i];
    out.number(l.max_queue_pairs).number(l.max_regions).number(l.max_send_requests).number(l.max_receive_requests);
    out.number(l.max_completions).number(l.max_message_bytes).number(l.max_region_bytes).number(l.frame_bytes);
    out.text(hello.names[i]);
  }
  return out.bytes();
}

Status decode(const ControlMessage& message, Hello& hello) {
  ByteReader in(message.view());
  const auto magic = in.number<std::uint32_t>();
  const auto version = in.number<std::uint16_t>();
  if (magic != kHelloMagic) return Status(Code::kMismatch, "the peer does not speak as a verbs link does");
  if (version != kHelloVersion) {
    return Status(Code::kMismatch, "the peer's verbs links are of version " + std::to_string(version) + ", ours of " +
                                       std::to_string(kHelloVersion) + ": install the same release on both");
  }
  hello.mode = static_cast<ModeChoice>(in.number<std::uint8_t>());
  hello.nonce = in.number<std::uint64_t>();
  hello.build = in.text();
  LinkOptions& o = hello.options;
  o.num_buffers = in.number<std::uint32_t>();
  o.frame_bytes = in.number<std::uint32_t>();
  o.buffer_sizes = in.number<std::uint32_t>();
  o.max_outstanding = in.number<std::uint32_t>();
  hello.links_per_device = in.number<std::uint32_t>();
  const std::size_t cables = in.number<std::uint8_t>();
  for (std::size_t i = 0; i < cables && in.ok(); ++i) {
    Limits l;
    l.max_queue_pairs = in.number<std::uint32_t>();
    l.max_regions = in.number<std::uint32_t>();
    l.max_send_requests = in.number<std::uint32_t>();
    l.max_receive_requests = in.number<std::uint32_t>();
    l.max_completions = in.number<std::uint32_t>();
    l.max_message_bytes = in.number<std::uint64_t>();
    l.max_region_bytes = in.number<std::uint64_t>();
    l.frame_bytes = in.number<std::uint32_t>();
    hello.limits.push_back(l);
    hello.names.push_back(in.text());
  }
  if (!in.complete()) return Status(Code::kCorrupt, "the peer's hello is no verbs link's");
  return {};
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

// What both ends compute alike from both hellos.
struct Agreement {
  Mode mode = Mode::kUC;
  Limits limits;
  std::uint32_t links_per_device = 1;
  std::uint32_t link = 0;
};

Status agree(const Hello& mine, const Hello& theirs, Agreement& out) {
  if (!mine.build.empty() && !theirs.build.empty() && mine.build != theirs.build) {
    return Status(Code::kMismatch, "the two machines run other builds of the system, " + quoted(mine.build) + " and " +
                                       quoted(theirs.build) + ": update one, or use another transport");
  }
  const LinkOptions& a = mine.options;
  const LinkOptions& b = theirs.options;
  if (a.num_buffers != b.num_buffers || a.frame_bytes != b.frame_bytes || a.buffer_sizes != b.buffer_sizes ||
      a.max_outstanding != b.max_outstanding) {
    return Status(Code::kMismatch, "the peer has other link options");
  }
  if (mine.limits.size() != theirs.limits.size()) {
    return Status(Code::kMismatch, "this end has " + std::to_string(mine.limits.size()) + " cables to the peer, the peer " +
                                       std::to_string(theirs.limits.size()));
  }
  if (mine.nonce == theirs.nonce) return Status(Code::kMismatch, "the control socket leads back to this end");
  bool counts_frames = false;
  out.limits = common(mine.limits[0], theirs.limits[0]);
  for (std::size_t i = 0; i < mine.limits.size(); ++i) {
    out.limits = common(out.limits, common(mine.limits[i], theirs.limits[i]));
  }
  counts_frames = out.limits.frame_bytes != 0;
  const auto wants = [&](ModeChoice choice) { return mine.mode == choice || theirs.mode == choice; };
  if (wants(ModeChoice::kUC) && wants(ModeChoice::kRC)) {
    return Status(Code::kMismatch, "one end wants unreliable queue pairs, the other reliable ones");
  }
  if (wants(ModeChoice::kRC)) {
    out.mode = Mode::kRC;
  } else if (wants(ModeChoice::kUC) || counts_frames) {
    out.mode = Mode::kUC;  // Thunderbolt has no others
  } else {
    out.mode = Mode::kRC;
  }
  out.links_per_device = std::max(mine.links_per_device, theirs.links_per_device);
  const std::uint64_t both = mine.nonce ^ theirs.nonce;
  out.link = static_cast<std::uint32_t>(both ^ both >> 32) | 1;
  return {};
}

// Talks to the peer, and tells it of a failure of this end.
class Talk {
 public:
  Talk(ControlSocket& control, Deadline deadline) : control_(control), deadline_(deadline) {}

  void say(ControlKind kind, std::string_view bytes) { control_.send(kind, bytes); }
  Status hear(ControlKind kind, ControlMessage& message) {
    if (Status status = control_.send_all(deadline_); !status.ok()) return status;
    for (;;) {
      if (Status status = control_.receive(message, deadline_); !status.ok()) return status;
      if (message.kind == ControlKind::kEnd) {
        ByteReader in(message.view());
        const auto code = static_cast<Code>(in.number<std::uint8_t>());
        const std::string why = in.text();
        // A mismatch is one at both ends.
        return Status(code == Code::kMismatch ? Code::kMismatch : Code::kPeerLost, "the peer refuses the link: " + why);
      }
      if (message.kind == kind) return {};
      if (message.kind != ControlKind::kAlive) {
        return Status(Code::kCorrupt, "the peer sent a control message of kind " +
                                          std::to_string(static_cast<int>(message.kind)) + " during the start");
      }
    }
  }
  Status refuse(Status why) {
    control_.send(ControlKind::kEnd,
                  ByteWriter().number(static_cast<std::uint8_t>(why.code())).text(why.text()).bytes());
    (void)control_.send_all(Deadline::after(0.2));
    return why;
  }

 private:
  ControlSocket& control_;
  Deadline deadline_;
};

// Regions and queue pairs of every cable, as many of each cable as all have. Says how many queues that are.
Status make_queues(std::vector<CableEnd>& ends, const Fit& fit, Mode mode, std::span<std::byte> memory,
                   std::uint32_t& made, Status& refused) {
  made = static_cast<std::uint32_t>(fit.classes.size());
  for (CableEnd& end : ends) {
    Status why;
    end.region = end.device->register_memory(memory, why);
    if (!end.region) return Status(Code::kLocal, end.name + ": " + why.text());
    for (std::uint32_t k = 0; k < made; ++k) {
      const SizeClass& of = fit.classes[k];
      auto queue = end.device->make_queue_pair(*end.region, {mode, of.send_requests, of.receives, of.bytes}, why);
      if (!queue) {
        refused = Status(Code::kLocal, end.name + ": queue pair " + std::to_string(k + 1) + " of " +
                                           std::to_string(fit.classes.size()) + ": " + why.text());
        made = k;
        break;
      }
      end.queues.push_back(std::move(queue));
    }
  }
  return {};
}

void unmake_queues(std::vector<CableEnd>& ends) {
  for (CableEnd& end : ends) {
    end.queues.clear();
    end.region.reset();
  }
}

std::string encode_addresses(const std::vector<CableEnd>& ends) {
  ByteWriter out;
  for (const CableEnd& end : ends) {
    for (const auto& queue : end.queues) {
      const Address a = queue->address();
      out.number(a.queue_pair_number).number(a.packet_sequence).number(a.lid).number(a.mtu).raw(a.gid);
    }
  }
  return out.bytes();
}

Status connect_queues(std::vector<CableEnd>& ends, const Fit& fit, const ControlMessage& message) {
  ByteReader in(message.view());
  for (std::uint32_t cable = 0; cable < ends.size(); ++cable) {
    for (std::uint32_t k = 0; k < fit.classes.size(); ++k) {
      Address a;
      a.queue_pair_number = in.number<std::uint32_t>();
      a.packet_sequence = in.number<std::uint32_t>();
      a.lid = in.number<std::uint16_t>();
      a.mtu = in.number<std::uint8_t>();
      in.raw(a.gid);
      if (!in.ok()) return Status(Code::kCorrupt, "the peer's addresses are too few");
      QueuePair& queue = *ends[cable].queues[k];
      Status status = queue.connect(a);
      for (std::uint32_t slot = 0; slot < fit.classes[k].receives && status.ok(); ++slot) {
        status = queue.post_receive(slot, fit.receive_offset(cable, k, slot), fit.classes[k].bytes);
      }
      if (!status.ok()) return Status(Code::kLocal, ends[cable].name + ": " + status.text());
    }
  }
  if (!in.complete()) return Status(Code::kCorrupt, "the peer's addresses are too many");
  return {};
}

void drain_all(std::vector<CableEnd>& ends) {
  for (CableEnd& end : ends) {
    for (const auto& queue : end.queues) (void)queue->drain(0.1);
  }
}

}  // namespace

std::unique_ptr<VerbsLink> verbs_link(int control_descriptor, std::vector<Cable> cables, const LinkOptions& options,
                                      const LinkSettings& settings, Deadline deadline, Status& why) {
  Descriptor socket(control_descriptor);
  options.validate();
  settings.validate();
  if (cables.empty() || cables.size() > kMostCables) {
    throw std::invalid_argument("a verbs link of " + std::to_string(cables.size()) + " cables: must be from 1 to " +
                                std::to_string(kMostCables));
  }
  ControlSocket control(std::move(socket));
  Talk talk(control, deadline);
  const auto give_up = [&](Status status) {
    why = std::move(status);
    return nullptr;
  };

  std::random_device random;
  Hello mine;
  mine.mode = settings.mode;
  mine.nonce = std::uint64_t{random()} << 32 | random();
  mine.build = settings.build;
  mine.options = options;
  mine.links_per_device = settings.links_per_device;
  std::unique_ptr<PageMemory> memory;  // goes after the regions in it
  std::vector<CableEnd> ends;
  for (Cable& cable : cables) {
    mine.limits.push_back(cable.device->limits());
    mine.names.push_back(cable.name);
    ends.push_back({cable.name, std::move(cable.device), nullptr, {}});
  }
  talk.say(ControlKind::kHello, encode(mine));
  ControlMessage message;
  if (Status status = talk.hear(ControlKind::kHello, message); !status.ok()) return give_up(std::move(status));
  Hello theirs;
  if (Status status = decode(message, theirs); !status.ok()) return give_up(talk.refuse(std::move(status)));
  Agreement agreed;
  if (Status status = agree(mine, theirs, agreed); !status.ok()) return give_up(talk.refuse(std::move(status)));
  for (std::size_t i = 0; i < ends.size(); ++i) ends[i].name += " (at the peer " + theirs.names[i] + ")";

  const auto count = static_cast<std::uint32_t>(ends.size());
  Fit plan;
  if (Status status = fit(options, agreed.limits, count, agreed.links_per_device, plan); !status.ok()) {
    return give_up(talk.refuse(Status(Code::kMismatch, status.text())));
  }
  // A device may refuse queue pairs that its limits promise, where others have them: both ends then make do with fewer.
  Status refused;
  for (;;) {
    memory = std::make_unique<PageMemory>(plan.region_bytes());
    std::uint32_t made = 0;
    if (Status status = make_queues(ends, plan, agreed.mode, memory->bytes(), made, refused); !status.ok()) {
      return give_up(talk.refuse(std::move(status)));
    }
    talk.say(ControlKind::kQueues, ByteWriter().number(made).text(refused.text()).bytes());
    if (Status status = talk.hear(ControlKind::kQueues, message); !status.ok()) return give_up(std::move(status));
    ByteReader in(message.view());
    const auto made_there = in.number<std::uint32_t>();
    const std::string refused_there = in.text();
    const std::uint32_t both = std::min(made, made_there);
    if (both >= plan.classes.size()) break;
    if (refused.ok()) refused = Status(Code::kLocal, "at the peer: " + refused_there);
    unmake_queues(ends);
    Status status = both == 0 ? Status(Code::kLocal, "no queue pair can be had") : Status();
    if (status.ok()) status = with_queues(options, agreed.limits, count, both, plan);
    if (!status.ok()) return give_up(Status(Code::kLocal, status.text() + ": " + refused.text()));
    plan.notes.push_back("only " + std::to_string(both) + " queue pairs could be had: " + refused.text());
  }

  talk.say(ControlKind::kAddresses, encode_addresses(ends));
  if (Status status = talk.hear(ControlKind::kAddresses, message); !status.ok()) return give_up(std::move(status));
  Status status = connect_queues(ends, plan, message);
  if (!status.ok()) {
    status = talk.refuse(std::move(status));
  } else {
    talk.say(ControlKind::kReady, {});
    status = talk.hear(ControlKind::kReady, message);
  }
  if (!status.ok()) {
    drain_all(ends);
    return give_up(std::move(status));
  }

  auto engine = std::make_unique<Engine>(std::move(control), std::move(*memory), std::move(ends), std::move(plan),
                                         settings, agreed.link);
  engine->start();
  const auto seed = [&](std::uint64_t nonce) { return nonce ^ agreed.link; };
  status = engine->verify(seed(mine.nonce), seed(theirs.nonce), deadline);
  if (!status.ok()) {
    engine->give_up(status);
    return give_up(std::move(status));
  }
  return std::make_unique<VerbsLink>(std::move(engine), agreed.mode);
}

}  // namespace mm::verbs
