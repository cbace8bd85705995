#pragma once

#include "fakeverbs/objects.h"

// How messages travel. All of these want the segment's lock to be held.
//
// Nothing runs by itself: what is due happens when a process posts, polls or arms. A message that arrives while its
// receiver computes is met, or dropped, when the receiver next looks, by what was posted when it arrived.
namespace mm::fakeverbs {

// Begins what can begin, takes what has arrived, and finishes what was answered, for one queue pair.
void progress(FakeQueuePair& pair);

// To the error state: everything posted comes back as flushed.
void move_to_error(FakeQueuePair& pair);

// Empties what a queue pair still had, and gives its number back.
void forget(FakeQueuePair& pair);

// A completion of the pair, seen from `at` on.
void finish(FakeQueuePair& pair, bool receive, std::uint64_t id, std::uint32_t status, std::uint32_t bytes,
            std::uint64_t at, std::uint32_t places);

// Gives back the queue pairs and regions of processes that are gone.
void bury_the_dead(Mapped& mapped);

// Lets the owner of a record look at once, and wakes it where it waits.
void rouse(Mapped& mapped, QueuePairRecord& record, std::uint64_t at);

// Everybody looks again: a cable was cut, or the clock was moved.
void rouse_all(Mapped& mapped);

// Places that a request takes in its queue.
[[nodiscard]] std::uint32_t places_of(const Settings& settings, std::uint64_t bytes);

// The GIDs of a device: 0 by its number, 1 as its interface's IPv4 address, 2 as its IPv6 address.
inline constexpr int kGids = 3;
[[nodiscard]] abi::Gid gid_of(const Segment& segment, std::uint32_t device, int index);

}  // namespace mm::fakeverbs
