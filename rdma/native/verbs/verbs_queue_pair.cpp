#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "core/deadline.h"
#include "verbs/handles.h"
#include "verbs/queue_depth.h"

namespace mm::verbs {
namespace {

constexpr std::size_t kBatch = 32;
// Set in the library's ids of receives: a completion that failed tells its id and status, but not its direction.
constexpr std::uint64_t kReceiveBit = std::uint64_t{1} << 63;

const char* mode_text(Mode mode) {
  return mode == Mode::kRC ? "reliable" : "unreliable";
}

class VerbsQueuePair final : public QueuePair {
 public:
  VerbsQueuePair(std::shared_ptr<Opened> device, VerbsRegion& region, const QueueShape& shape)
      : device_(std::move(device)),
        memory_(region.memory()),
        key_(region.key()),
        shape_(shape),
        sequence_(std::random_device{}() & 0xffffffU) {}
  ~VerbsQueuePair() override;

  Status make();

  [[nodiscard]] Address address() const override;
  Status connect(const Address& remote) override;
  Status post_send(std::uint64_t id, std::size_t offset, std::uint32_t bytes) override;
  Status post_receive(std::uint64_t id, std::size_t offset, std::uint32_t bytes) override;
  std::size_t poll(std::span<Completion> into) override;
  [[nodiscard]] Status failure() const override { return failure_; }
  [[nodiscard]] int wait_descriptor() const override { return channel_ != nullptr ? channel_->fd : -1; }
  bool arm() override;
  std::size_t drain(double seconds) override;

 private:
  [[nodiscard]] const Functions& call() const { return device_->call(); }
  Status move_to(abi::QpAttr& attr, int mask, const char* what);
  Status check_request(const char* what, std::size_t offset, std::uint32_t bytes,
                       const std::atomic<std::uint32_t>& posted, std::uint32_t most) const;
  std::size_t poll_library(std::span<Completion> into);
  void take_events();

  std::shared_ptr<Opened> device_;
  std::span<std::byte> memory_;
  std::uint32_t key_;
  QueueShape shape_;
  std::uint32_t sequence_;
  abi::CompChannel* channel_ = nullptr;
  abi::Cq* queue_ = nullptr;
  abi::Qp* pair_ = nullptr;
  std::atomic<std::uint32_t> sends_{0};     // posted and not come back
  std::atomic<std::uint32_t> receives_{0};  // posted and not come back
  std::atomic<bool> closed_{false};
  std::array<Completion, kBatch> kept_{};  // what arm found; poll gives it first
  std::size_t kept_count_ = 0;
  Status failure_;
};

VerbsQueuePair::~VerbsQueuePair() {
  if (pair_ != nullptr) {
    call().destroy_qp(pair_);
    ++atomic_counts().queue_pairs_destroyed;
  }
  // A queue with events that nobody acknowledged would block its own destruction.
  if (channel_ != nullptr && queue_ != nullptr) take_events();
  if (queue_ != nullptr) call().destroy_cq(queue_);
  if (channel_ != nullptr) call().destroy_comp_channel(channel_);
}

Status VerbsQueuePair::make() {
  const Limits& limits = device_->facts.limits;
  const Depth depth = depth_of(limits, shape_);
  const std::string what = device_->text(std::string("making a queue pair (") + mode_text(shape_.mode) + ", " +
                                         std::to_string(shape_.send_requests) + " sends and " +
                                         std::to_string(shape_.receive_requests) + " receives of up to " +
                                         std::to_string(shape_.message_bytes) + " bytes)");
  if (const std::string excess = too_much(limits, shape_); !excess.empty()) {
    return Status(Code::kLocal, what + ": that needs " + excess);
  }
  const bool events = device_->options.events == Choice::kYes ||
                      (device_->options.events == Choice::kAuto && !device_->facts.thunderbolt);
  if (events && call().has_events()) {
    channel_ = call().create_comp_channel(device_->context);
    if (channel_ != nullptr) ::fcntl(channel_->fd, F_SETFL, ::fcntl(channel_->fd, F_GETFL) | O_NONBLOCK);
  }
  if (device_->options.events == Choice::kYes && channel_ == nullptr) {
    return Status(Code::kLocal, what + ": the library has no completion channels");
  }
  errno = 0;
  queue_ = call().create_cq(device_->context, static_cast<int>(depth.completions()), nullptr, channel_, 0);
  if (queue_ == nullptr) return Status(Code::kLocal, failure_text(what + ": the completion queue", errno));
  abi::QpInitAttr init{};
  init.send_cq = init.recv_cq = queue_;
  init.cap.max_send_wr = static_cast<std::uint32_t>(depth.send);
  init.cap.max_recv_wr = static_cast<std::uint32_t>(depth.receive);
  init.cap.max_send_sge = init.cap.max_recv_sge = 1;
  init.qp_type = shape_.mode == Mode::kRC ? abi::kQpRc : abi::kQpUc;
  errno = 0;
  pair_ = call().create_qp(device_->domain, &init);
  if (pair_ == nullptr) {
    std::string text = failure_text(what, errno);
    if (errno == EBUSY) {
      text += "; the device allows " + std::to_string(limits.max_queue_pairs) +
              " queue pairs for all processes together, so trying again helps only after one is gone";
    } else if (errno == EOPNOTSUPP && shape_.mode == Mode::kRC) {
      text += "; the device has no reliable connections, use the mode uc";
    }
    return Status(Code::kLocal, text);
  }
  ++atomic_counts().queue_pairs_made;
  // "The system may adjust queue depths": what it gave is what counts.
  abi::QpAttr got{};
  if (call().query_qp != nullptr && call().query_qp(pair_, &got, abi::kMaskCapacity, &init) == 0 &&
      (got.cap.max_send_wr < depth.send || got.cap.max_recv_wr < depth.receive)) {
    return Status(Code::kLocal, what + ": the device gave only " + std::to_string(got.cap.max_send_wr) +
                                    " places for sends and " + std::to_string(got.cap.max_recv_wr) +
                                    " for receives; ask for fewer or smaller requests");
  }
  return {};
}

Address VerbsQueuePair::address() const {
  Address address;
  address.queue_pair_number = pair_->qp_num;
  address.packet_sequence = sequence_;
  address.lid = device_->port.lid;
  address.gid = device_->gid;
  address.mtu = device_->port.mtu;
  return address;
}

Status VerbsQueuePair::move_to(abi::QpAttr& attr, int mask, const char* what) {
  // Some libraries return the error, others -1 and errno.
  errno = 0;
  const int result = call().modify_qp(pair_, &attr, mask);
  if (result == 0) return {};
  return Status(Code::kLocal, failure_text(device_->text("queue pair " + std::to_string(pair_->qp_num) + ": " + what),
                                           result == -1 && errno != 0 ? errno : result));
}

Status VerbsQueuePair::connect(const Address& remote) {
  const bool reliable = shape_.mode == Mode::kRC;
  abi::QpAttr init{};
  init.qp_state = abi::kInit;
  init.port_num = device_->port.number;
  Status done = move_to(init, abi::kMaskState | abi::kMaskPkeyIndex | abi::kMaskPort | abi::kMaskAccess, "to INIT");
  if (!done.ok()) return done;

  abi::QpAttr ready{};
  ready.qp_state = abi::kReadyToReceive;
  ready.path_mtu = std::min(device_->port.mtu, remote.mtu);
  ready.rq_psn = remote.packet_sequence;
  ready.dest_qp_num = remote.queue_pair_number;
  ready.ah_attr.dlid = remote.lid;
  ready.ah_attr.port_num = device_->port.number;
  ready.ah_attr.is_global = 1;
  ready.ah_attr.grh.hop_limit = 1;
  ready.ah_attr.grh.sgid_index = static_cast<std::uint8_t>(device_->options.gid_index);
  std::memcpy(ready.ah_attr.grh.dgid.raw, remote.gid.data(), remote.gid.size());
  int mask = abi::kMaskState | abi::kMaskAddress | abi::kMaskPathMtu | abi::kMaskRemoteNumber |
             abi::kMaskReceiveSequence;
  if (reliable) {
    ready.min_rnr_timer = 12;  // 0.64 ms
    mask |= abi::kMaskMaxDestReads | abi::kMaskNotReadyTimer;
  }
  done = move_to(ready, mask, "to ready-to-receive");
  if (!done.ok()) return done;

  abi::QpAttr send{};
  send.qp_state = abi::kReadyToSend;
  send.sq_psn = sequence_;
  mask = abi::kMaskState | abi::kMaskSendSequence;
  if (reliable) {
    send.timeout = 14;   // 67 ms
    send.retry_cnt = 7;  // a silent peer is an error after about half a second
    send.rnr_retry = 7;  // for ever: a receive that is not posted yet is no error
    mask |= abi::kMaskTimeout | abi::kMaskRetries | abi::kMaskNotReadyRetries | abi::kMaskMaxReads;
  }
  return move_to(send, mask, "to ready-to-send");
}

Status VerbsQueuePair::check_request(const char* what, std::size_t offset, std::uint32_t bytes,
                                     const std::atomic<std::uint32_t>& posted, std::uint32_t most) const {
  if (closed_) return Status(Code::kAborted, device_->text(std::string(what) + ": the queue pair is closed"));
  if (bytes > shape_.message_bytes || offset > memory_.size() || bytes > memory_.size() - offset) {
    return Status(Code::kLocal, device_->text(std::string(what) + " of " + std::to_string(bytes) + " bytes at " +
                                              std::to_string(offset) + ": the queue pair takes " +
                                              std::to_string(shape_.message_bytes) + ", the region has " +
                                              std::to_string(memory_.size())));
  }
  if (posted >= most) {
    return Status(Code::kLocal, device_->text(std::string(what) + ": all " + std::to_string(most) + " are posted"));
  }
  return {};
}

Status VerbsQueuePair::post_send(std::uint64_t id, std::size_t offset, std::uint32_t bytes) {
  constexpr const char* kWhat = "posting a send";
  if (Status wrong = check_request(kWhat, offset, bytes, sends_, shape_.send_requests); !wrong.ok()) return wrong;
  abi::Sge entry{reinterpret_cast<std::uintptr_t>(memory_.data() + offset), bytes, key_};
  abi::SendWr request{};
  request.wr_id = id;
  request.sg_list = &entry;
  request.num_sge = 1;
  request.opcode = abi::kWrSend;
  request.send_flags = abi::kSignaled;
  abi::SendWr* bad = nullptr;
  ++sends_;  // before: its completion may be polled by another thread at once
  if (const int error = device_->context->ops.post_send(pair_, &request, &bad); error != 0) {
    --sends_;
    return Status(Code::kLocal, failure_text(device_->text(kWhat), error));
  }
  return {};
}

Status VerbsQueuePair::post_receive(std::uint64_t id, std::size_t offset, std::uint32_t bytes) {
  constexpr const char* kWhat = "posting a receive";
  if (Status wrong = check_request(kWhat, offset, bytes, receives_, shape_.receive_requests); !wrong.ok()) {
    return wrong;
  }
  abi::Sge entry{reinterpret_cast<std::uintptr_t>(memory_.data() + offset), bytes, key_};
  abi::RecvWr request{id | kReceiveBit, nullptr, &entry, 1};
  abi::RecvWr* bad = nullptr;
  ++receives_;
  if (const int error = device_->context->ops.post_recv(pair_, &request, &bad); error != 0) {
    --receives_;
    return Status(Code::kLocal, failure_text(device_->text(kWhat), error));
  }
  return {};
}

std::size_t VerbsQueuePair::poll_library(std::span<Completion> into) {
  std::array<abi::Wc, kBatch> found;
  const auto most = std::min(into.size(), found.size());
  if (most == 0) return 0;
  const int count = device_->context->ops.poll_cq(queue_, static_cast<int>(most), found.data());
  if (count < 0) {
    failure_ = Status(Code::kLocal, device_->text("polling the completion queue failed: it has overrun, or the device "
                                                  "is gone"));
    return 0;
  }
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    const abi::Wc& wc = found[i];
    Completion& completion = into[i];
    completion.id = wc.wr_id & ~kReceiveBit;
    completion.ok = wc.status == abi::kSuccess;
    completion.status = wc.status;
    completion.receive = (wc.wr_id & kReceiveBit) != 0;
    completion.bytes = completion.ok && completion.receive ? wc.byte_len : 0;
    --(completion.receive ? receives_ : sends_);
  }
  return static_cast<std::size_t>(count);
}

std::size_t VerbsQueuePair::poll(std::span<Completion> into) {
  if (into.empty() || !failure_.ok()) return 0;
  if (kept_count_ == 0) return poll_library(into);
  const std::size_t count = std::min(kept_count_, into.size());
  std::copy_n(kept_.begin(), count, into.begin());
  std::copy(kept_.data() + count, kept_.data() + kept_count_, kept_.data());
  kept_count_ -= count;
  return count;
}

void VerbsQueuePair::take_events() {
  abi::Cq* queue = nullptr;
  void* context = nullptr;
  unsigned count = 0;
  while (call().get_cq_event(channel_, &queue, &context) == 0) ++count;
  if (count != 0) call().ack_cq_events(queue_, count);
}

bool VerbsQueuePair::arm() {
  if (channel_ == nullptr || !failure_.ok()) return false;
  if (kept_count_ != 0) return false;
  take_events();
  if (const int error = device_->context->ops.req_notify_cq(queue_, 0); error != 0) {
    failure_ = Status(Code::kLocal, failure_text(device_->text("asking for a notification"), error));
    return false;
  }
  // What completed before the request raises no event: look once more.
  kept_count_ = poll_library(kept_);
  return kept_count_ == 0 && failure_.ok();
}

std::size_t VerbsQueuePair::drain(double seconds) {
  closed_ = true;
  const bool to_error = device_->options.error_before_destroy == Choice::kYes ||
                        (device_->options.error_before_destroy == Choice::kAuto && !device_->facts.thunderbolt);
  if (to_error) {
    abi::QpAttr attr{};
    attr.qp_state = abi::kError;
    // A failure leaves the requests where they are; what never comes back is counted below.
    (void)move_to(attr, abi::kMaskState, "to ERROR");
  }
  const Deadline deadline = Deadline::after(seconds);
  std::array<Completion, kBatch> found;
  kept_count_ = 0;
  // Without the error state nothing brings an unused receive back: wait for the sends only.
  const auto waits = [&] { return sends_ != 0 || (to_error && receives_ != 0); };
  while (waits() && failure_.ok()) {
    if (poll_library(found) != 0) continue;
    if (deadline.passed()) break;
    // A device that polls without events can only be asked again.
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return sends_ + receives_;
}

}  // namespace

std::unique_ptr<QueuePair> make_verbs_queue_pair(std::shared_ptr<Opened> device, VerbsRegion& region,
                                                 const QueueShape& shape, Status& why) {
  auto pair = std::make_unique<VerbsQueuePair>(std::move(device), region, shape);
  why = pair->make();
  if (!why.ok()) return nullptr;
  return pair;
}

}  // namespace mm::verbs
