#include "shm/shm_link.h"

#include "core/descriptor.h"
#include "shm/shm_receive.h"
#include "shm/shm_send.h"

namespace mm {
namespace {

class ShmLink final : public Link {
 public:
  ShmLink(int send_memory, int receive_memory, Descriptor send_doorbell, Descriptor receive_doorbell,
          const LinkOptions& options)
      : sender_({send_memory, options, "shm link, memory to send"}, std::move(send_doorbell), options, stopped_),
        receiver_({receive_memory, options, "shm link, memory to receive"}, std::move(receive_doorbell), options,
                  stopped_),
        pool_bytes_(2 * shm_bytes(options)) {}

  SendHalf& sender() override { return sender_; }
  ReceiveHalf& receiver() override { return receiver_; }
  [[nodiscard]] std::string provider() const override { return "shm"; }
  // Both directions: each side has both mapped, the machine holds them once.
  [[nodiscard]] std::size_t pool_bytes() const override { return pool_bytes_; }

  void abort() override {
    stopped_.store(true, std::memory_order_release);
    sender_.doorbell().shutdown();
    receiver_.doorbell().shutdown();
  }

 private:
  std::atomic<bool> stopped_{false};
  shm::ShmSend sender_;
  shm::ShmReceive receiver_;
  std::size_t pool_bytes_;
};

}  // namespace

std::size_t shm_bytes(const LinkOptions& options) {
  options.validate();
  return shm::Layout(options).bytes();
}

std::unique_ptr<Link> shm_link(const ShmDescriptors& descriptors, const LinkOptions& options) {
  // The memory stays mapped without its descriptors.
  const Descriptor send_memory(descriptors.send_memory);
  const Descriptor receive_memory(descriptors.receive_memory);
  Descriptor send_doorbell(descriptors.send_doorbell);
  Descriptor receive_doorbell(descriptors.receive_doorbell);
  options.validate();
  prepare_socket(send_doorbell.get(), "shm link, doorbell to send");
  prepare_socket(receive_doorbell.get(), "shm link, doorbell to receive");
  return std::make_unique<ShmLink>(send_memory.get(), receive_memory.get(), std::move(send_doorbell),
                                   std::move(receive_doorbell), options);
}

}  // namespace mm
