#include "tcp/tcp_link.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "core/descriptor.h"

namespace mm {
namespace {

// Large enough that a small message comes with its header in one read; small enough that the copy out of it is cheap.
constexpr std::size_t kStagingBytes = 16 * 1024;
// Of one frame. Headers cost nothing at this size.
constexpr std::size_t kFrameLimitBytes = std::size_t{4} << 20;

Status aborted() { return Status(Code::kAborted, "the link was aborted"); }

class TcpSend final : public SendHalf {
 public:
  TcpSend(int fd, const std::atomic<bool>& stopped) : fd_(fd), stopped_(stopped) {}

  Progress try_send(const FrameHeader& header, std::span<const std::byte> payload) override {
    if (!failure().ok()) return Progress::kFailed;
    if (stopped_.load(std::memory_order_acquire)) return fail(aborted());
    if (!in_frame_) {
      if (payload.size() != header.frame_bytes) {
        return fail(Status(Code::kLocal, "a frame of " + std::to_string(header.frame_bytes) + " bytes was given " +
                                             std::to_string(payload.size())));
      }
      encode_header(header, header_);
      sent_ = 0;
      in_frame_ = true;
    }
    std::array<iovec, 2> parts{};
    std::size_t count = 0;
    if (sent_ < kFrameHeaderBytes) parts[count++] = {header_.data() + sent_, kFrameHeaderBytes - sent_};
    const std::size_t from = sent_ > kFrameHeaderBytes ? sent_ - kFrameHeaderBytes : 0;
    if (from < payload.size()) {
      parts[count++] = {const_cast<std::byte*>(payload.data() + from), payload.size() - from};
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(count);
    const ssize_t moved = ::sendmsg(fd_, &message, send_flags());
    if (moved < 0) return failed(errno);
    sent_ += static_cast<std::size_t>(moved);
    if (sent_ < kFrameHeaderBytes + payload.size()) return Progress::kMoved;
    in_frame_ = false;
    return Progress::kDone;
  }

  [[nodiscard]] std::size_t frame_limit(std::size_t message_bytes) const override {
    return std::clamp<std::size_t>(message_bytes, 1, kFrameLimitBytes);
  }

  bool arm(std::vector<pollfd>& descriptors) override {
    if (!failure().ok() || stopped_.load(std::memory_order_acquire)) return false;
    descriptors.push_back({fd_, POLLOUT, 0});
    return true;
  }
  void disarm() override {}

 private:
  Progress failed(int error) {
    if (stopped_.load(std::memory_order_acquire)) return fail(aborted());
    if (error == EAGAIN || error == EWOULDBLOCK || error == EINTR || error == ENOBUFS) return Progress::kIdle;
    if (says_peer_lost(error)) return fail(Status(Code::kPeerLost, "the peer is gone: " + error_text(error)));
    return fail(Status(Code::kLocal, "sendmsg: " + error_text(error)));
  }

  int fd_;
  const std::atomic<bool>& stopped_;
  FrameBytes header_{};
  std::size_t sent_ = 0;  // of the header and the payload together
  bool in_frame_ = false;
};

class TcpReceive final : public ReceiveHalf {
 public:
  TcpReceive(int fd, const std::atomic<bool>& stopped)
      : fd_(fd), stopped_(stopped), staging_(std::make_unique<std::byte[]>(kStagingBytes)) {}

  Progress try_header(FrameHeader& header) override {
    if (!failure().ok()) return Progress::kFailed;
    if (stopped_.load(std::memory_order_acquire)) return fail(aborted());
    if (!in_frame_) {
      if (staged() < kFrameHeaderBytes) {
        compact();
        iovec part{staging_.get() + end_, kStagingBytes - end_};
        const ssize_t moved = read(&part, 1);
        if (moved < 0) return outcome_;
        end_ += static_cast<std::size_t>(moved);
        if (staged() < kFrameHeaderBytes) return Progress::kMoved;
      }
      const auto bytes = std::span<const std::byte, kFrameHeaderBytes>(staging_.get() + begin_, kFrameHeaderBytes);
      if (Status status = decode_header(bytes, header_); !status.ok()) return fail(std::move(status));
      begin_ += kFrameHeaderBytes;
      received_ = 0;
      in_frame_ = true;
    }
    header = header_;
    return Progress::kDone;
  }

  Progress try_payload(std::span<std::byte> into) override {
    if (!failure().ok()) return Progress::kFailed;
    if (stopped_.load(std::memory_order_acquire)) return fail(aborted());
    if (!in_frame_ || into.size() != header_.frame_bytes) {
      return fail(Status(Code::kLocal, "room for " + std::to_string(into.size()) + " bytes was given to a frame of " +
                                           std::to_string(in_frame_ ? header_.frame_bytes : 0)));
    }
    const std::size_t ready = std::min(staged(), into.size() - received_);
    if (ready > 0) {
      std::memcpy(into.data() + received_, staging_.get() + begin_, ready);
      begin_ += ready;
      received_ += ready;
    }
    if (received_ < into.size()) {
      // The staging is empty here. What follows this payload goes there, so that the next header costs no read.
      begin_ = end_ = 0;
      std::array<iovec, 2> parts{{{into.data() + received_, into.size() - received_}, {staging_.get(), kStagingBytes}}};
      const ssize_t moved = read(parts.data(), 2);
      if (moved < 0) return ready > 0 && outcome_ == Progress::kIdle ? Progress::kMoved : outcome_;
      const auto bytes = static_cast<std::size_t>(moved);
      const std::size_t mine = std::min(bytes, into.size() - received_);
      received_ += mine;
      end_ = bytes - mine;
      if (received_ < into.size()) return Progress::kMoved;
    }
    in_frame_ = false;
    return Progress::kDone;
  }

  bool arm(std::vector<pollfd>& descriptors) override {
    if (!failure().ok() || stopped_.load(std::memory_order_acquire)) return false;
    if (in_frame_ ? staged() > 0 : staged() >= kFrameHeaderBytes) return false;
    descriptors.push_back({fd_, POLLIN, 0});
    return true;
  }
  void disarm() override {}

 private:
  [[nodiscard]] std::size_t staged() const { return end_ - begin_; }

  void compact() {
    if (begin_ == 0) return;
    std::memmove(staging_.get(), staging_.get() + begin_, staged());
    end_ -= begin_;
    begin_ = 0;
  }

  // Bytes read, or -1 with `outcome_` set.
  ssize_t read(iovec* parts, int count) {
    const ssize_t moved = ::readv(fd_, parts, count);
    if (moved > 0) return moved;
    const int error = moved == 0 ? 0 : errno;
    if (stopped_.load(std::memory_order_acquire)) {
      outcome_ = fail(aborted());
    } else if (moved < 0 && (error == EAGAIN || error == EWOULDBLOCK || error == EINTR)) {
      outcome_ = Progress::kIdle;
    } else if (moved == 0 || says_peer_lost(error)) {
      outcome_ = fail(Status(Code::kPeerLost, "the peer " + where() + (moved == 0 ? "" : ": " + error_text(error))));
    } else {
      outcome_ = fail(Status(Code::kLocal, "readv: " + error_text(error)));
    }
    return -1;
  }

  [[nodiscard]] std::string where() const {
    if (in_frame_) {
      return "closed the connection after " + std::to_string(received_) + " of " + std::to_string(header_.frame_bytes) +
             " bytes of a frame";
    }
    if (staged() > 0) return "closed the connection after " + std::to_string(staged()) + " bytes of a header";
    return "closed the connection";
  }

  int fd_;
  const std::atomic<bool>& stopped_;
  std::unique_ptr<std::byte[]> staging_;
  std::size_t begin_ = 0;  // of what is staged and not taken
  std::size_t end_ = 0;
  FrameHeader header_;
  std::size_t received_ = 0;  // of the payload
  bool in_frame_ = false;
  Progress outcome_ = Progress::kIdle;
};

class TcpLink final : public Link {
 public:
  explicit TcpLink(Descriptor socket)
      : socket_(std::move(socket)), sender_(socket_.get(), stopped_), receiver_(socket_.get(), stopped_) {}

  SendHalf& sender() override { return sender_; }
  ReceiveHalf& receiver() override { return receiver_; }
  [[nodiscard]] std::string provider() const override { return "tcp"; }
  [[nodiscard]] std::size_t pool_bytes() const override { return kStagingBytes; }

  void abort() override {
    stopped_.store(true, std::memory_order_release);
    ::shutdown(socket_.get(), SHUT_RDWR);
  }

 private:
  Descriptor socket_;
  std::atomic<bool> stopped_{false};
  TcpSend sender_;
  TcpReceive receiver_;
};

}  // namespace

std::unique_ptr<Link> tcp_link(int descriptor, const LinkOptions& options) {
  Descriptor socket(descriptor);
  options.validate();
  prepare_socket(descriptor, "tcp link");
  return std::make_unique<TcpLink>(std::move(socket));
}

}  // namespace mm
