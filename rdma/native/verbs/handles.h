#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "verbs/library.h"
#include "verbs/verbs_device.h"

// What the device, its regions and its queue pairs share.
namespace mm::verbs {

// The counters behind counts().
struct AtomicCounts {
  std::atomic<std::uint64_t> devices_opened{0}, devices_closed{0};
  std::atomic<std::uint64_t> regions_made{0}, regions_destroyed{0};
  std::atomic<std::uint64_t> queue_pairs_made{0}, queue_pairs_destroyed{0};
};
AtomicCounts& atomic_counts();

// An opened device with its protection domain; freed when the last region and queue pair is gone.
struct Opened {
  Opened(std::shared_ptr<const Library> from, abi::Context* opened) : library(std::move(from)), context(opened) {}
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  ~Opened();

  [[nodiscard]] const Functions& call() const { return library->functions(); }
  [[nodiscard]] std::string text(const std::string& what) const { return "verbs " + facts.name + ": " + what; }

  std::shared_ptr<const Library> library;
  abi::Context* context;
  abi::Pd* domain = nullptr;
  DeviceFacts facts;
  PortFacts port;
  DeviceOptions options;
  std::array<std::byte, 16> gid{};
};

class VerbsRegion final : public Region {
 public:
  VerbsRegion(std::shared_ptr<Opened> device, std::span<std::byte> memory, abi::Mr* mr)
      : device_(std::move(device)), memory_(memory), mr_(mr) {}
  ~VerbsRegion() override;

  [[nodiscard]] std::span<std::byte> memory() const override { return memory_; }
  [[nodiscard]] std::uint32_t key() const { return mr_->lkey; }
  [[nodiscard]] const Opened* device() const { return device_.get(); }

 private:
  std::shared_ptr<Opened> device_;
  std::span<std::byte> memory_;
  abi::Mr* mr_;
};

std::unique_ptr<QueuePair> make_verbs_queue_pair(std::shared_ptr<Opened> device, VerbsRegion& region,
                                                 const QueueShape& shape, Status& why);

}  // namespace mm::verbs
