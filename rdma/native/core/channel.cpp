#include "core/channel.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

namespace mm {
namespace {

constexpr std::array kOperations = {Operation::kMessage,   Operation::kAllSum,     Operation::kAllMax,
                                    Operation::kAllMin,    Operation::kAllGather,  Operation::kSumScatter,
                                    Operation::kSplit,     Operation::kHostLabel,  Operation::kHostArray,
                                    Operation::kHostMessage};

std::string hex(std::uint32_t value) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "%08x", value);
  return text.data();
}

std::string lane_name(std::uint8_t lane) {
  switch (lane) {
    case 0: return "point to point";
    case 1: return "collectives";
  }
  return "lane " + std::to_string(lane);
}

std::string_view kind_name(FrameKind kind) {
  switch (kind) {
    case FrameKind::kData: return "data";
    case FrameKind::kProbe: return "probe";
  }
  return "unknown kind";
}

// The part of a text that expected and received frames have in common.
std::string describe(const FrameHeader& header) {
  return std::string(kind_name(header.kind)) + " from rank " + std::to_string(header.source) + " to rank " +
         std::to_string(header.target) + ", " + to_text(header.epoch) + ", " + lane_name(header.lane) + ", message " +
         std::to_string(header.sequence) + ", " + std::string(name_of(static_cast<Dtype>(header.dtype)));
}

std::string sizes(const FrameHeader& header) {
  return std::to_string(header.message_bytes) + " bytes, at offset " + std::to_string(header.offset);
}

}  // namespace

std::string_view name_of(Operation operation) {
  switch (operation) {
    case Operation::kMessage: return "message";
    case Operation::kAllSum: return "all_sum";
    case Operation::kAllMax: return "all_max";
    case Operation::kAllMin: return "all_min";
    case Operation::kAllGather: return "all_gather";
    case Operation::kSumScatter: return "sum_scatter";
    case Operation::kSplit: return "split";
    case Operation::kHostLabel: return "host transfer";
    case Operation::kHostArray: return "host transfer";
    case Operation::kHostMessage: return "host message";
  }
  return "unknown";
}

std::uint32_t tag_of(std::uint32_t shape_hash, Operation operation) {
  if (operation == Operation::kMessage) return shape_hash;
  // One more round of FNV-1a over the operation's number.
  return (shape_hash ^ static_cast<std::uint32_t>(operation)) * 16777619u;
}

Channel::Channel(std::unique_ptr<Link> link, Epoch epoch, std::uint8_t lane, std::uint16_t self, std::uint16_t peer,
                 bool checksum_payloads)
    : link_(std::move(link)),
      epoch_(epoch),
      lane_(lane),
      self_(self),
      peer_(peer),
      checksum_payloads_(checksum_payloads) {}

Channel::Sending::Sending(Channel& channel, const Message& message, std::span<const std::byte> payload)
    : channel_(channel),
      lock_(channel.send_mutex_),
      payload_(payload),
      frame_limit_(channel.link_->sender().frame_limit(payload.size())) {
  frame_limit_ = std::clamp<std::size_t>(frame_limit_, 1, kMaxFrameBytes);
  header_.kind = FrameKind::kData;
  header_.dtype = static_cast<std::uint8_t>(message.dtype);
  header_.lane = channel.lane_;
  header_.epoch = channel.epoch_;
  header_.sequence = channel.sent_++;
  header_.message_bytes = payload.size();
  header_.offset = 0;
  header_.shape_hash = tag_of(message.shape_hash, message.operation);
  header_.source = channel.self_;
  header_.target = channel.peer_;
  begin_frame();
}

void Channel::Sending::begin_frame() {
  auto left = payload_.subspan(header_.offset);
  header_.frame_bytes = static_cast<std::uint32_t>(std::min(frame_limit_, left.size()));
  if (channel_.checksum_payloads_) header_.payload_checksum = payload_checksum(left.first(header_.frame_bytes));
}

Progress Channel::Sending::progress() {
  if (done_) return Progress::kDone;
  SendHalf& half = channel_.link_->sender();
  switch (half.try_send(header_, payload_.subspan(header_.offset, header_.frame_bytes))) {
    case Progress::kIdle: return Progress::kIdle;
    case Progress::kMoved: return Progress::kMoved;
    case Progress::kFailed: failure_ = half.failure(); return Progress::kFailed;
    case Progress::kDone: break;
  }
  header_.offset += header_.frame_bytes;
  if (header_.offset == payload_.size()) {
    done_ = true;
    return Progress::kDone;
  }
  begin_frame();
  return Progress::kMoved;
}

Channel::Receiving::Receiving(Channel& channel, Message expected, std::span<std::byte> into)
    : channel_(channel), lock_(channel.receive_mutex_), expected_(std::move(expected)), into_(into) {
  sequence_ = channel.received_++;
}

Channel::Receiving::Receiving(Channel& channel, Message expected, std::vector<std::byte>& into, std::size_t most_bytes)
    : Receiving(channel, std::move(expected), std::span<std::byte>()) {
  into.clear();
  resized_ = &into;
  most_bytes_ = most_bytes;
}

// Takes the sender's size, where any will do; a wrong one is left to `check`.
void Channel::Receiving::size_by(const FrameHeader& header) {
  std::vector<std::byte>* into = std::exchange(resized_, nullptr);
  if (into == nullptr) return;
  into->resize(static_cast<std::size_t>(std::min<std::uint64_t>(header.message_bytes, most_bytes_)));
  into_ = *into;
}

Progress Channel::Receiving::progress() {
  if (done_) return Progress::kDone;
  ReceiveHalf& half = channel_.link_->receiver();
  if (!in_frame_) {
    FrameHeader header;
    Progress progress = half.try_header(header);
    if (progress == Progress::kFailed) failure_ = half.failure();
    if (progress != Progress::kDone) return progress;
    size_by(header);
    failure_ = check(header);
    if (!failure_.ok()) return Progress::kFailed;
    frame_ = header.frame_bytes;
    frame_checksum_ = header.payload_checksum;
    in_frame_ = true;
  }
  switch (half.try_payload(into_.subspan(received_, frame_))) {
    case Progress::kIdle: return Progress::kIdle;
    case Progress::kMoved: return Progress::kMoved;
    case Progress::kFailed: failure_ = half.failure(); return Progress::kFailed;
    case Progress::kDone: break;
  }
  failure_ = check_payload();
  if (!failure_.ok()) return Progress::kFailed;
  received_ += frame_;
  in_frame_ = false;
  done_ = received_ == into_.size();
  return done_ ? Progress::kDone : Progress::kMoved;
}

Status Channel::Receiving::check_payload() const {
  if (frame_checksum_ == 0) return {};
  const std::uint32_t came = payload_checksum(into_.subspan(received_, frame_));
  if (came == frame_checksum_) return {};
  return {Code::kCorrupt, "what rank " + std::to_string(channel_.peer_) + " sent was altered on its way: message " +
                              std::to_string(sequence_) + ", " + std::to_string(frame_) + " bytes at offset " +
                              std::to_string(received_) + ": checksum " + hex(came) + ", expected " +
                              hex(frame_checksum_)};
}

Status Channel::Receiving::check(const FrameHeader& header) const {
  FrameHeader wanted;
  wanted.kind = FrameKind::kData;
  wanted.dtype = static_cast<std::uint8_t>(expected_.dtype);
  wanted.lane = channel_.lane_;
  wanted.epoch = channel_.epoch_;
  wanted.sequence = sequence_;
  wanted.message_bytes = into_.size();
  wanted.offset = received_;
  wanted.shape_hash = tag_of(expected_.shape_hash, expected_.operation);
  wanted.source = channel_.peer_;
  wanted.target = channel_.self_;

  // A frame without bytes is only right where it is the whole message, or the message would never end.
  bool bytes_fit = header.message_bytes == wanted.message_bytes && header.offset == wanted.offset &&
                   header.frame_bytes <= into_.size() - received_ && (header.frame_bytes > 0 || into_.empty());
  if (header.kind == wanted.kind && header.dtype == wanted.dtype && header.lane == wanted.lane &&
      header.epoch == wanted.epoch && header.sequence == wanted.sequence && header.shape_hash == wanted.shape_hash &&
      header.source == wanted.source && header.target == wanted.target && bytes_fit) {
    return {};
  }

  // The sender's shape travels only as a hash: name it where it is the expected one, under any operation.
  std::string came_shape = "another shape or operation";
  for (Operation operation : kOperations) {
    if (tag_of(expected_.shape_hash, operation) == header.shape_hash) {
      came_shape = std::string(name_of(operation)) + " of " + expected_.shape_text;
    } else if (tag_of(kAnyShape, operation) == header.shape_hash) {
      came_shape = std::string(name_of(operation));
    }
  }
  return {Code::kMismatch,
          "rank " + std::to_string(channel_.peer_) + " sent something else than rank " +
              std::to_string(channel_.self_) + " expected: expected " + describe(wanted) + ", " +
              std::string(name_of(expected_.operation)) + " of " + expected_.shape_text + " [" +
              hex(wanted.shape_hash) + "], " + sizes(wanted) + "; came " + describe(header) + ", " + came_shape + " [" +
              hex(header.shape_hash) + "], " + sizes(header) + ", frame of " + std::to_string(header.frame_bytes) +
              " bytes"};
}

}  // namespace mm
