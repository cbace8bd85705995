#include "verbs/link_control.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "verbs/link_bytes.h"

namespace mm::verbs {

ControlSocket::ControlSocket(Descriptor socket) : socket_(std::move(socket)) {
  prepare_socket(socket_.get(), "verbs link, control socket");
}

void ControlSocket::send(ControlKind kind, std::string_view bytes) {
  if (!failure_.ok()) return;
  ByteWriter header;
  header.number(static_cast<std::uint32_t>(bytes.size() + 1)).number(static_cast<std::uint8_t>(kind));
  out_ += header.bytes();
  out_ += bytes;
  if (out_.size() > kMostWaitingBytes) {
    failure_ = Status(Code::kPeerLost, "the peer does not read its control socket");
    return;
  }
  flush();
}

void ControlSocket::flush() {
  while (!out_.empty() && failure_.ok()) {
    const ssize_t sent = ::send(socket_.get(), out_.data(), out_.size(), send_flags());
    if (sent >= 0) {
      out_.erase(0, static_cast<std::size_t>(sent));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) {
      return;
    } else if (errno != EINTR) {
      // What the peer said last is still to be read: its end comes with the next read.
      out_.clear();
    }
  }
}

bool ControlSocket::read() {
  std::array<char, 16384> bytes{};
  while (failure_.ok()) {
    const ssize_t came = ::recv(socket_.get(), bytes.data(), bytes.size(), 0);
    if (came > 0) {
      in_.append(bytes.data(), static_cast<std::size_t>(came));
      if (static_cast<std::size_t>(came) < bytes.size()) return true;
      if (in_.size() > kMostWaitingBytes) return true;
      continue;
    }
    if (came < 0 && errno == EINTR) continue;
    if (came < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
    const int error = came == 0 ? 0 : errno;
    failure_ = Status(Code::kPeerLost, error == 0 ? std::string("the peer closed the link")
                                                  : "the peer is gone: " + error_text(error));
  }
  return false;
}

bool ControlSocket::next(ControlMessage& message) {
  if (in_.size() < 4) return false;
  const auto length = get_number<std::uint32_t>(reinterpret_cast<const std::byte*>(in_.data()));
  if (length == 0 || length > kMostMessageBytes) {
    failure_ = Status(Code::kCorrupt, "a control message of " + std::to_string(length) + " bytes");
    in_.clear();
    return false;
  }
  if (in_.size() < 4 + std::size_t{length}) return false;
  message.kind = static_cast<ControlKind>(in_[4]);
  message.bytes = in_.substr(5, length - 1);
  in_.erase(0, 4 + std::size_t{length});
  return true;
}

void ControlSocket::shutdown() { ::shutdown(socket_.get(), SHUT_RDWR); }

Status ControlSocket::send_all(Deadline deadline) {
  for (;;) {
    flush();
    if (!failure_.ok()) return failure_;
    if (out_.empty()) return {};
    if (deadline.passed()) return Status(Code::kTimeout, "the peer did not read its control socket in time");
    pollfd wait{socket_.get(), POLLOUT, 0};
    (void)::poll(&wait, 1, deadline.poll_ms());
  }
}

Status ControlSocket::receive(ControlMessage& message, Deadline deadline) {
  for (;;) {
    if (next(message)) return {};
    if (!failure_.ok()) return failure_;
    if (deadline.passed()) return Status(Code::kTimeout, "the peer did not answer on the control socket in time");
    pollfd wait{socket_.get(), POLLIN, 0};
    if (::poll(&wait, 1, deadline.poll_ms()) > 0 && !read() && in_.empty()) return failure_;
  }
}

}  // namespace mm::verbs
