#include "verbs/verbs_link.h"

#include "core/copy.h"

namespace mm::verbs {

class VerbsLink::Sending final : public SendHalf {
 public:
  explicit Sending(Engine& engine) : engine_(engine) {}

  Progress try_send(const FrameHeader& header, std::span<const std::byte> payload) override {
    if (!failure().ok()) return Progress::kFailed;
    const std::size_t most = engine_.fit().classes.back().capacity();
    if (payload.size() != header.frame_bytes || payload.size() > most) {
      return fail(Status(Code::kLocal, "a frame of " + std::to_string(header.frame_bytes) + " bytes was given " +
                                           std::to_string(payload.size()) + "; the largest buffer has " +
                                           std::to_string(most)));
    }
    Status why;
    std::uint64_t sequence = 0;
    std::span<std::byte> buffer;
    switch (engine_.open(payload.size(), sequence, buffer, why)) {
      case Progress::kIdle: return Progress::kIdle;
      case Progress::kFailed: return fail(std::move(why));
      case Progress::kDone:
      case Progress::kMoved: break;
    }
    encode_header(header, buffer.subspan<kPrefixBytes, kFrameHeaderBytes>());
    copy_bytes(buffer.data() + kPayloadAt, payload.data(), payload.size());
    const Progress published = engine_.publish(sequence, payload.size(), WireKind::kData, why);
    return published == Progress::kFailed ? fail(std::move(why)) : published;
  }

  [[nodiscard]] std::size_t frame_limit(std::size_t message_bytes) const override {
    return engine_.fit().frame_limit(message_bytes);
  }
  bool arm(std::vector<pollfd>& descriptors) override {
    return failure().ok() && engine_.arm(Engine::Side::kSend, descriptors);
  }
  void disarm() override { engine_.disarm(Engine::Side::kSend); }

 private:
  Engine& engine_;
};

class VerbsLink::Receiving final : public ReceiveHalf {
 public:
  explicit Receiving(Engine& engine) : engine_(engine) {}

  Progress try_header(FrameHeader& header) override {
    if (!failure().ok()) return Progress::kFailed;
    if (engine_.stopped()) return fail(aborted());
    if (!in_frame_) {
      std::span<const std::byte> head;
      Status why;
      switch (engine_.front(head, payload_, why)) {
        case Progress::kIdle: return Progress::kIdle;
        case Progress::kFailed: return fail(std::move(why));
        case Progress::kDone:
        case Progress::kMoved: break;
      }
      if (Status status = decode_header(head.first<kFrameHeaderBytes>(), header_); !status.ok()) {
        return fail(std::move(status));
      }
      if (header_.frame_bytes != payload_.size()) {
        return fail(Status(Code::kCorrupt, "a frame of " + std::to_string(header_.frame_bytes) + " bytes came with " +
                                               std::to_string(payload_.size())));
      }
      in_frame_ = true;
    }
    header = header_;
    return Progress::kDone;
  }

  Progress try_payload(std::span<std::byte> into) override {
    if (!failure().ok()) return Progress::kFailed;
    if (engine_.stopped()) return fail(aborted());
    if (!in_frame_ || into.size() != header_.frame_bytes) {
      return fail(Status(Code::kLocal, "room for " + std::to_string(into.size()) + " bytes was given to a frame of " +
                                           std::to_string(in_frame_ ? header_.frame_bytes : 0)));
    }
    copy_bytes(into.data(), payload_.data(), into.size());
    in_frame_ = false;
    engine_.taken(header_.offset + header_.frame_bytes == header_.message_bytes);
    return Progress::kDone;
  }

  bool arm(std::vector<pollfd>& descriptors) override {
    return failure().ok() && !in_frame_ && engine_.arm(Engine::Side::kReceive, descriptors);
  }
  void disarm() override { engine_.disarm(Engine::Side::kReceive); }

 private:
  static Status aborted() { return Status(Code::kAborted, "the link was aborted"); }

  Engine& engine_;
  FrameHeader header_;
  std::span<const std::byte> payload_;
  bool in_frame_ = false;
};

VerbsLink::VerbsLink(std::unique_ptr<Engine> engine, Mode mode)
    : engine_(std::move(engine)),
      mode_(mode),
      sender_(std::make_unique<Sending>(*engine_)),
      receiver_(std::make_unique<Receiving>(*engine_)) {}

VerbsLink::~VerbsLink() = default;

SendHalf& VerbsLink::sender() { return *sender_; }
ReceiveHalf& VerbsLink::receiver() { return *receiver_; }

}  // namespace mm::verbs
