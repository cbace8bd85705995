#include "core/side.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "core/descriptor.h"
#include "core/pipe.h"

namespace mm {
namespace {

constexpr std::uint8_t kAbortByte = 1;
constexpr std::uint8_t kFarewellByte = 2;
constexpr std::size_t kPrefixBytes = 6;
constexpr unsigned kNobody = 65535;

void name_this_thread(const char* name) {
#ifdef __APPLE__
  pthread_setname_np(name);
#else
  pthread_setname_np(pthread_self(), name);
#endif
}

// Cuts at most `bytes` off, never within a UTF-8 character.
std::string shortened(const std::string& text, std::size_t bytes) {
  if (text.size() <= bytes) return text;
  while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xC0u) == 0x80u) --bytes;
  return text.substr(0, bytes);
}

std::string encode(std::uint8_t kind, Code code, unsigned blamed, const std::string& text) {
  std::string message;
  for (std::size_t byte : {std::size_t{kind}, static_cast<std::size_t>(code), blamed & std::size_t{0xFF},
                           std::size_t{blamed >> 8u}, text.size() & 0xFF, text.size() >> 8u}) {
    message.push_back(static_cast<char>(byte));
  }
  return message + text;
}

struct Ending {
  SideSockets::End how;
  SideSockets::Reason reason;
};

// What has come from one peer so far.
class Inbox {
 public:
  // Reads what is there. A value once it ended.
  std::optional<Ending> read_from(int descriptor) {
    std::array<char, 512> piece;
    while (true) {
      auto count = ::recv(descriptor, piece.data(), piece.size(), MSG_DONTWAIT);
      if (count > 0) {
        bytes_.append(piece.data(), static_cast<std::size_t>(count));
        if (auto ending = parse()) return ending;
        continue;
      }
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return std::nullopt;
      // End of the stream, or the connection was reset. What came of a torn message is of no use.
      return Ending{SideSockets::End::kLost, {}};
    }
  }

 private:
  std::optional<Ending> parse() const {
    auto corrupt = [](std::string text) {
      return Ending{SideSockets::End::kCorrupt, {Code::kCorrupt, -1, std::move(text)}};
    };
    auto at = [this](std::size_t i) { return static_cast<unsigned>(static_cast<unsigned char>(bytes_[i])); };
    unsigned kind = at(0);
    if (kind != kAbortByte && kind != kFarewellByte) {
      return corrupt("a side message of unknown kind " + std::to_string(kind));
    }
    if (bytes_.size() < kPrefixBytes) return std::nullopt;
    unsigned code = at(1);
    unsigned blamed = at(2) | (at(3) << 8u);
    std::size_t length = at(4) | (at(5) << 8u);
    if (kind == kFarewellByte && (code | blamed | length) != 0) return corrupt("a farewell that says more");
    if (kind == kAbortByte && (code == 0 || code > static_cast<unsigned>(Code::kLocal))) {
      return corrupt("a side message of unknown code " + std::to_string(code));
    }
    if (length > SideSockets::kReasonBytes) {
      return corrupt("a side message that claims " + std::to_string(length) + " bytes");
    }
    if (bytes_.size() < kPrefixBytes + length) return std::nullopt;
    if (bytes_.size() > kPrefixBytes + length) return corrupt("bytes after the last side message");
    if (kind == kFarewellByte) return Ending{SideSockets::End::kFarewell, {}};
    int rank = blamed == kNobody ? -1 : static_cast<int>(blamed);
    return Ending{SideSockets::End::kAborted, {static_cast<Code>(code), rank, bytes_.substr(kPrefixBytes)}};
  }

  std::string bytes_;
};

}  // namespace

SideSockets::SideSockets(std::map<int, int> descriptor_by_peer, OnEnd on_end)
    : descriptors_(std::move(descriptor_by_peer)), on_end_(std::move(on_end)) {
  if (descriptors_.empty()) return;
  auto give_up = [this] {
    for (auto [peer, descriptor] : descriptors_) ::close(descriptor);
    if (wake_read_ >= 0) ::close(wake_read_);
    if (wake_write_ >= 0) ::close(wake_write_);
  };
  try {
    make_pipe(wake_read_, wake_write_, "the side sockets' thread");
#ifdef SO_NOSIGPIPE
    int on = 1;
    for (auto [peer, descriptor] : descriptors_) setsockopt(descriptor, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    // Signals are for the program's own threads; a new thread inherits this one's mask.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      thread_ = std::thread([this] { watch(); });
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  } catch (...) {
    give_up();
    throw;
  }
}

SideSockets::~SideSockets() {
  if (descriptors_.empty()) return;
  char byte = 1;
  [[maybe_unused]] auto written = ::write(wake_write_, &byte, 1);
  thread_.join();
  for (auto [peer, descriptor] : descriptors_) ::close(descriptor);
  ::close(wake_read_);
  ::close(wake_write_);
}

void SideSockets::farewell() { tell(encode(kFarewellByte, Code::kOk, 0, {})); }

void SideSockets::abort(const Reason& reason) {
  unsigned blamed = reason.blamed < 0 ? kNobody : static_cast<unsigned>(reason.blamed) & 0xFFFFu;
  tell(encode(kAbortByte, reason.code, blamed, shortened(reason.text, kReasonBytes)));
}

void SideSockets::tell(const std::string& message) {
  std::lock_guard lock(mutex_);
  if (told_) return;
  told_ = true;
  // Nothing was sent on these sockets before, so the few bytes fit in the system's buffer. Where a send fails the peer
  // has gone already, or learns from the end of the stream.
  for (auto [peer, descriptor] : descriptors_) {
    [[maybe_unused]] auto sent = ::send(descriptor, message.data(), message.size(), MSG_DONTWAIT | send_flags());
  }
}

void SideSockets::watch() {
  name_this_thread("mm-side");
  std::vector<pollfd> polled{{wake_read_, POLLIN, 0}};
  std::vector<int> peers{-1};
  for (auto [peer, descriptor] : descriptors_) {
    polled.push_back({descriptor, POLLIN, 0});
    peers.push_back(peer);
  }
  std::vector<Inbox> inboxes(polled.size());
  while (true) {
    if (::poll(polled.data(), static_cast<nfds_t>(polled.size()), -1) < 0) continue;
    if (polled[0].revents != 0) return;
    for (std::size_t i = 1; i < polled.size(); ++i) {
      if (polled[i].fd < 0 || polled[i].revents == 0) continue;
      if (auto ending = inboxes[i].read_from(polled[i].fd)) {
        polled[i].fd = -1;  // poll skips it; the destructor closes it
        on_end_(peers[i], ending->how, ending->reason);
      }
    }
  }
}

}  // namespace mm
