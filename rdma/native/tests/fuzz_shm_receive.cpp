// Any control page and descriptors: frames or an error, and never a byte outside the memory (AddressSanitizer watches
// its ends).
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "core/descriptor.h"
#include "shm/shm_receive.h"
#include "shm/shm_send.h"
#include "tests/check.h"

namespace {

// Takes bytes from the input; zeros at its end.
struct Input {
  const std::uint8_t* data;
  std::size_t left;
  template <typename T>
  T take() {
    T value{};
    const std::size_t bytes = left < sizeof value ? left : sizeof value;
    std::memcpy(&value, data, bytes);
    data += bytes;
    left -= bytes;
    return value;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mm;
  Input input{data, size};
  LinkOptions options;
  options.num_buffers = 1 + input.take<std::uint8_t>() % 3;
  options.frame_bytes = 64;
  options.buffer_sizes = 1 + input.take<std::uint8_t>() % 4;
  options.max_outstanding = 1 + input.take<std::uint8_t>() % 5;
  const shm::Layout layout(options);
  static constexpr std::align_val_t kAlignment{shm::kLineBytes};
  struct Free {
    void operator()(std::byte* at) const { ::operator delete(at, kAlignment); }
  };
  const std::unique_ptr<std::byte, Free> memory(
      static_cast<std::byte*>(::operator new(layout.bytes(), kAlignment)));
  std::memset(memory.get(), 0, layout.bytes());
  int fds[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  prepare_socket(fds[0], "fuzz");
  prepare_socket(fds[1], "fuzz");
  std::atomic<bool> stopped{false};
  const auto mapping = [&] { return shm::Mapping(memory.get(), layout.bytes(), options, "fuzz"); };
  shm::ShmSend sender(mapping(), Descriptor(fds[0]), options, stopped);
  shm::ShmReceive receiver(mapping(), Descriptor(fds[1]), options, stopped);
  auto* control = reinterpret_cast<shm::Control*>(memory.get());

  std::vector<std::byte> payload;
  std::vector<std::byte> into;
  for (int round = 0; round < 64 && input.left > 0; ++round) {
    const auto what = input.take<std::uint8_t>();
    auto* slot = reinterpret_cast<shm::FrameSlot*>(
        memory.get() + layout.descriptor_at(input.take<std::uint8_t>() % options.max_outstanding));
    switch (what % 8) {
      case 0: control->published = input.take<std::uint64_t>(); break;
      case 1: control->published = control->published.load() + input.take<std::uint8_t>() % 4; break;
      case 2: control->consumed = input.take<std::uint64_t>(); break;
      case 3: slot->size_class = what < 128 ? input.take<std::uint8_t>() % 6 : input.take<std::uint32_t>(); break;
      case 4: slot->slot = what < 128 ? input.take<std::uint8_t>() % 4 : input.take<std::uint32_t>(); break;
      case 5: {  // a true header of any size
        FrameHeader header;
        header.frame_bytes = what < 128 ? input.take<std::uint16_t>() : input.take<std::uint32_t>() % kMaxFrameBytes;
        header.message_bytes = header.frame_bytes;
        encode_header(header, std::span<std::byte, kFrameHeaderBytes>(slot->header));
        break;
      }
      case 6: slot->header[what % kFrameHeaderBytes] = input.take<std::byte>(); break;
      case 7: {
        FrameHeader header;
        const auto most = static_cast<std::uint32_t>(options.largest_buffer_bytes());
        header.frame_bytes = input.take<std::uint16_t>() % (most + 1);
        header.message_bytes = header.frame_bytes;
        payload.assign(header.frame_bytes, std::byte{1});
        (void)sender.try_send(header, payload);
        break;
      }
    }
    FrameHeader header;
    if (input.take<std::uint8_t>() % 2 == 0 && receiver.try_header(header) == Progress::kDone) {
      CHECK(header.frame_bytes <= options.largest_buffer_bytes());
      into.assign(header.frame_bytes, std::byte{0});
      CHECK(receiver.try_payload(into) == Progress::kDone);
    }
    std::vector<pollfd> polls;
    if (receiver.arm(polls)) receiver.disarm();
    if (sender.arm(polls)) sender.disarm();
  }
  for (const Half* half : {static_cast<const Half*>(&sender), static_cast<const Half*>(&receiver)}) {
    const Code code = half->failure().code();
    CHECK(code == Code::kOk || code == Code::kCorrupt);
  }
  return 0;
}
