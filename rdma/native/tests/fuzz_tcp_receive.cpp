// Any stream of bytes, in any pieces: frames, or an end.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "tcp/tcp_link.h"
#include "tests/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mm;
  int fds[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  const auto link = tcp_link(fds[0], {});
  // The first byte says how the rest is cut; each piece may become a true frame.
  std::vector<std::byte> stream;
  std::size_t at = 1;
  while (at < size) {
    const std::size_t length = std::min<std::size_t>(data[at] % 97, size - at - 1);
    const auto* from = reinterpret_cast<const std::byte*>(data + at + 1);
    if (data[at] < 200) {
      FrameHeader header;
      header.message_bytes = header.frame_bytes = static_cast<std::uint32_t>(length);
      FrameBytes bytes;
      encode_header(header, bytes);
      stream.insert(stream.end(), bytes.begin(), bytes.end());
    }
    stream.insert(stream.end(), from, from + length);
    at += length + 1;
  }
  const std::size_t step = size > 0 ? std::size_t{data[0]} + 1 : 1;
  std::vector<std::byte> into;
  FrameHeader header;
  bool in_frame = false;
  std::size_t sent = 0;
  for (bool closed = false;;) {
    if (sent < stream.size()) {
      const std::size_t part = std::min(step, stream.size() - sent);
      CHECK(::send(fds[1], stream.data() + sent, part, 0) == static_cast<ssize_t>(part));
      sent += part;
    } else if (!closed) {
      ::close(fds[1]);
      closed = true;
    }
    const Progress progress = in_frame ? link->receiver().try_payload(into) : link->receiver().try_header(header);
    if (progress == Progress::kFailed) {
      const Code code = link->receiver().failure().code();
      CHECK(code == Code::kCorrupt || code == Code::kPeerLost);
      if (!closed) ::close(fds[1]);
      return 0;
    }
    if (progress != Progress::kDone) continue;
    in_frame = !in_frame;
    if (!in_frame) continue;
    if (header.frame_bytes > 65536) {
      if (!closed) ::close(fds[1]);
      return 0;
    }
    into.assign(header.frame_bytes, std::byte{0});
  }
}
