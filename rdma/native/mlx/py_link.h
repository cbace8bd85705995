#pragma once

#include <memory>
#include <stdexcept>

#include "core/link.h"
#include "core/options.h"

namespace mm {

// The Python object `Link`: owns a link until a group takes it. All but what `borrow` gives needs the GIL.
class PyLink {
 public:
  PyLink(std::unique_ptr<Link> link, const LinkOptions& options) : link_(std::move(link)), options_(options) {}
  PyLink(const PyLink&) = delete;
  PyLink& operator=(const PyLink&) = delete;

  // Gives the link away; every later use raises. Throws std::invalid_argument (ValueError) where it was given away
  // before or is in use.
  [[nodiscard]] std::unique_ptr<Link> take() {
    (void)get();
    if (users_ > 0) throw std::invalid_argument("the link is in use by another thread");
    return std::move(link_);
  }

  [[nodiscard]] Link& get() const {
    if (!link_) throw std::invalid_argument("the link was handed to a group and belongs to it");
    return *link_;
  }
  [[nodiscard]] const LinkOptions& options() const { return options_; }

  // Keeps the link here while it is used without the GIL. Made and destroyed with the GIL.
  class Use {
   public:
    explicit Use(PyLink& owner) : owner_(owner), link_(owner.get()) { ++owner_.users_; }
    ~Use() { --owner_.users_; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    [[nodiscard]] Link& link() const { return link_; }

   private:
    PyLink& owner_;
    Link& link_;
  };

 private:
  std::unique_ptr<Link> link_;
  LinkOptions options_;
  int users_ = 0;
};

}  // namespace mm
