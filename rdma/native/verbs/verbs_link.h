#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/deadline.h"
#include "core/link.h"
#include "verbs/link_engine.h"
#include "verbs/link_options.h"
#include "verbs/queue_pair.h"

namespace mm::verbs {

class VerbsLink;

// One cable of the pair as this end has it.
struct Cable {
  std::unique_ptr<Device> device;
  std::string name;  // for people: "rdma_en5 port 1"
};

// Joins with the peer, which calls this at about the same time over the other end of `control` and with its ends of the
// same cables in the same order: compares what both are, makes queue pairs and one region per cable, connects them, and
// sends a pattern over every queue in both directions before it returns. Takes the socket over.
//
// Null and the reason: kMismatch where the two ends do not fit together (the same reason on both), kLocal where a device
// refuses, kPeerLost where the peer goes or a cable carries nothing, kCorrupt where it alters what it carries, kTimeout
// at the deadline. Throws std::invalid_argument for wrong options and std::system_error for a descriptor that is no
// connected stream socket.
std::unique_ptr<VerbsLink> verbs_link(int control, std::vector<Cable> cables, const LinkOptions& options,
                                      const LinkSettings& settings, Deadline deadline, Status& why);

// A link over queue pairs: frames are numbered, acknowledged and sent again where they were lost, and reach the user
// once, whole, in order.
class VerbsLink final : public Link {
 public:
  explicit VerbsLink(std::unique_ptr<Engine> engine, Mode mode);
  ~VerbsLink() override;

  SendHalf& sender() override;
  ReceiveHalf& receiver() override;
  [[nodiscard]] std::string provider() const override { return "verbs"; }
  [[nodiscard]] std::size_t pool_bytes() const override { return engine_->pool_bytes(); }
  void abort() override { engine_->abort(); }

  [[nodiscard]] const Fit& fit() const { return engine_->fit(); }
  [[nodiscard]] LinkCounts counts() const { return engine_->counts(); }
  [[nodiscard]] Mode mode() const { return mode_; }
  [[nodiscard]] Engine& engine() { return *engine_; }  // for measurements in another time than the machine's

 private:
  class Sending;
  class Receiving;

  std::unique_ptr<Engine> engine_;
  Mode mode_;
  std::unique_ptr<Sending> sender_;
  std::unique_ptr<Receiving> receiver_;
};

}  // namespace mm::verbs
