#pragma once

#include <string>

#include "doorbell.h"
#include "outbox.h"
#include "spsc.h"

namespace mm::spsc {

// The receiving side: a consumer that puts long messages together. For one thread at a time.
class Inbox {
 public:
  // Throws as Consumer's. The descriptor must stay open until the last read.
  Inbox(std::span<std::byte> memory, int doorbell) : consumer_(memory), doorbell_(doorbell) {}

  // Gives the next message to `take(first, second)` as two spans, which are valid during the call. kWait: there is
  // none, and the producer knows that we sleep. After kCorrupt nothing works any more.
  template <class Take>
  Result read(Take&& take) {
    while (!corrupt_) {
      Consumer::Piece piece;
      Result result = consumer_.peek(piece);
      if (result == Result::kWait) {
        if (consumer_.sleep() == Result::kWait) return Result::kWait;
        continue;
      }
      if (result == Result::kCorrupt || partial_.size() + piece.size() > kMostMessageBytes) break;
      if (!piece.more && partial_.empty()) {
        take(piece.first, piece.second);
        release();
        return Result::kDone;
      }
      append(piece.first);
      append(piece.second);
      release();
      if (!piece.more) {
        const std::string whole = std::move(partial_);
        partial_ = {};
        take(std::as_bytes(std::span(whole)), std::span<const std::byte>{});
        return Result::kDone;
      }
    }
    corrupt_ = true;
    return Result::kCorrupt;
  }

  // Whether the producer said goodbye and not in the middle of a message. Ask when the doorbell has closed and read()
  // gave kWait.
  [[nodiscard]] bool ended() const { return consumer_.ended() && partial_.empty(); }

 private:
  void append(std::span<const std::byte> bytes) {
    partial_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  void release() {
    consumer_.release();
    if (consumer_.must_wake()) doorbell_.ring();
  }

  Consumer consumer_;
  Doorbell doorbell_;
  std::string partial_;
  bool corrupt_ = false;
};

}  // namespace mm::spsc
