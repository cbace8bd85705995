// The interface's data path: states, posts, polls and waits.

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fakeverbs/exports.h"
#include "fakeverbs/flight.h"

namespace mm::fakeverbs {
namespace {

bool has(int mask, int needed) {
  return (mask & needed) == needed;
}

// A post on a cable that is cut, where the settings refuse it.
bool refused_by_cut(const FakeQueuePair& pair) {
  const Segment& segment = mapped_of(pair).segment();
  const DeviceRecord& device = segment.devices[record_of(pair).device];
  return segment.settings.cut_refuses && (device.cable == kNone || !segment.cables[device.cable].up);
}

// A receive that was posted may be what the other end waits for.
void offer_credit(FakeQueuePair& pair) {
  Mapped& mapped = mapped_of(pair);
  QueuePairRecord& remote = mapped.segment().queue_pairs[record_of(pair).remote_number % kMostQueuePairs];
  if (mapped.segment().settings.flow_control && remote.used && remote.number == record_of(pair).remote_number) {
    rouse(mapped, remote, 0);
  }
}

int to_ready_to_receive(FakeQueuePair& pair, const abi::QpAttr& attr, int mask) {
  const bool reliable = pair.qp_type == abi::kQpRc;
  int needed = abi::kMaskAddress | abi::kMaskPathMtu | abi::kMaskRemoteNumber | abi::kMaskReceiveSequence;
  if (reliable) needed |= abi::kMaskMaxDestReads | abi::kMaskNotReadyTimer;
  const int gid = attr.ah_attr.grh.sgid_index;
  const abi::Gid none{};
  const abi::Gid own = gid_of(mapped_of(pair).segment(), record_of(pair).device, gid);
  if (!has(mask, needed) || attr.path_mtu < 1 || attr.path_mtu > 5 || attr.ah_attr.port_num != 1 ||
      attr.ah_attr.is_global == 0 || gid >= kGids || std::memcmp(own.raw, none.raw, sizeof none.raw) == 0) {
    return EINVAL;
  }
  QueuePairRecord& record = record_of(pair);
  record.remote_number = attr.dest_qp_num;
  record.receive_sequence = attr.rq_psn & 0xffffffU;
  std::memcpy(record.remote_gid, attr.ah_attr.grh.dgid.raw, sizeof record.remote_gid);
  return 0;
}

int to_ready_to_send(FakeQueuePair& pair, const abi::QpAttr& attr, int mask) {
  int needed = abi::kMaskSendSequence;
  if (pair.qp_type == abi::kQpRc) {
    needed |= abi::kMaskTimeout | abi::kMaskRetries | abi::kMaskNotReadyRetries | abi::kMaskMaxReads;
  }
  if (!has(mask, needed)) return EINVAL;
  record_of(pair).send_sequence = attr.sq_psn & 0xffffffU;
  pair.attr.rnr_retry = attr.rnr_retry;
  return 0;
}

}  // namespace

int modify(FakeQueuePair& pair, const abi::QpAttr& attr, int mask) {
  if (!has(mask, abi::kMaskState)) return EINVAL;
  int error = EINVAL;
  if (attr.qp_state == abi::kError) {
    progress(pair);  // what has arrived by now has been met
    if (pair.state != abi::kError) move_to_error(pair);
    return 0;
  }
  if (attr.qp_state == abi::kInit && pair.state == abi::kReset) {
    const bool whole = has(mask, abi::kMaskPkeyIndex | abi::kMaskPort | abi::kMaskAccess) && attr.port_num == 1;
    error = whole ? 0 : EINVAL;
  } else if (attr.qp_state == abi::kReadyToReceive && pair.state == abi::kInit) {
    error = to_ready_to_receive(pair, attr, mask);
  } else if (attr.qp_state == abi::kReadyToSend && pair.state == abi::kReadyToReceive) {
    error = to_ready_to_send(pair, attr, mask);
  }
  if (error == 0) record_of(pair).state = pair.state = attr.qp_state;
  return error;
}

int post_send(abi::Qp* qp, abi::SendWr* request, abi::SendWr** bad) {
  FakeQueuePair& pair = of(qp);
  Segment& segment = mapped_of(pair).segment();
  const Locked locked(segment);
  int error = 0;
  for (; request != nullptr && error == 0; request = request->next) {
    *bad = request;
    const std::uint32_t bytes = request->num_sge == 1 ? request->sg_list[0].length : 0;
    const std::uint32_t places = places_of(segment.settings, bytes);
    if (request->opcode != abi::kWrSend || request->num_sge < 0 || request->num_sge > 1 ||
        bytes > segment.settings.message_bytes || pair.state == abi::kReset || pair.state == abi::kInit ||
        pair.state == abi::kReadyToReceive) {
      error = EINVAL;
    } else if (refused_by_cut(pair)) {
      error = EIO;
    } else if (pair.send_places + places > pair.cap.max_send_wr) {
      error = ENOMEM;
    } else {
      PostedSend send;
      send.id = request->wr_id;
      send.bytes = bytes;
      if (request->num_sge == 1) {
        send.address = request->sg_list[0].addr;
        send.key = request->sg_list[0].lkey;
      }
      send.earliest = fabric_now(segment);
      pair.send_places += places;
      if (pair.state == abi::kError) {
        finish(pair, false, send.id, abi::kFlushed, 0, send.earliest, places);
      } else {
        pair.sends.push_back(send);
        progress(pair);
      }
    }
  }
  return error;
}

int post_receive(abi::Qp* qp, abi::RecvWr* request, abi::RecvWr** bad) {
  FakeQueuePair& pair = of(qp);
  Segment& segment = mapped_of(pair).segment();
  const Locked locked(segment);
  // What arrived before this receive was posted is not for it.
  if (pair.state == abi::kReadyToReceive || pair.state == abi::kReadyToSend) {
    if (pair.qp_type == abi::kQpUc) progress(pair);
  }
  int error = 0;
  for (; request != nullptr && error == 0; request = request->next) {
    *bad = request;
    const std::uint32_t bytes = request->num_sge == 1 ? request->sg_list[0].length : 0;
    const std::uint32_t places = places_of(segment.settings, bytes);
    const bool early = pair.state == abi::kInit || pair.state == abi::kReadyToReceive;
    if (request->num_sge < 0 || request->num_sge > 1 || bytes > segment.settings.message_bytes ||
        pair.state == abi::kReset || (early && !segment.settings.receive_before_ready)) {
      error = EINVAL;
    } else if (refused_by_cut(pair)) {
      error = EIO;
    } else if (pair.receive_places + places > pair.cap.max_recv_wr) {
      error = ENOMEM;
    } else {
      PostedReceive receive;
      receive.id = request->wr_id;
      receive.bytes = bytes;
      if (request->num_sge == 1) {
        receive.address = request->sg_list[0].addr;
        receive.key = request->sg_list[0].lkey;
      }
      pair.receive_places += places;
      if (pair.state == abi::kError) {
        finish(pair, true, receive.id, abi::kFlushed, 0, fabric_now(segment), places);
      } else {
        pair.receives.push_back(receive);
        ++record_of(pair).receives;
        offer_credit(pair);
      }
    }
  }
  // A reliable message may have waited for just this.
  if (pair.qp_type == abi::kQpRc) progress(pair);
  return error;
}

int poll_queue(abi::Cq* cq, int entries, abi::Wc* into) {
  FakeQueue& queue = of(cq);
  Segment& segment = queue.owner->own.mapped->segment();
  // Polls are many: no lock where nothing can be there.
  if (next_of(queue) > fabric_now(segment)) return 0;
  const Locked locked(segment);
  for (FakeQueuePair* pair : queue.pairs) progress(*pair);
  if (queue.overrun) return -EIO;
  const std::uint64_t now = fabric_now(segment);
  int count = 0;
  std::uint64_t next = kNever;
  auto kept = queue.finished.begin();
  for (auto at = queue.finished.begin(); at != queue.finished.end(); ++at) {
    if (at->ready_at > now || count == entries) {
      next = std::min(next, at->ready_at);
      if (kept != at) *kept = *at;
      ++kept;
      continue;
    }
    into[count++] = at->wc;
    std::uint32_t& places =
        (at->wc.opcode & abi::kWcReceive) != 0 ? at->pair->receive_places : at->pair->send_places;
    places -= std::min(places, at->places);
  }
  queue.finished.erase(kept, queue.finished.end());
  queue.next_ready = next;
  return count;
}

int request_notification(abi::Cq* cq, int) {
  FakeQueue& queue = of(cq);
  const Locked locked(queue.owner->own.mapped->segment());
  if (queue.waits_on == nullptr) return EINVAL;
  for (FakeQueuePair* pair : queue.pairs) progress(*pair);
  arm(queue);
  return 0;
}

EXPORT int ibv_get_cq_event(abi::CompChannel* base, abi::Cq** queue, void** user) {
  FakeChannel& channel = of(base);
  for (;;) {
    {
      const Locked locked(channel_segment(channel));
      if (channel.events.empty()) {
        pollfd ready{channel.fd, POLLIN, 0};
        if (::poll(&ready, 1, 0) > 0) {
          channel.waiter->clear();
          for (FakeQueue* waiting : channel.queues) {
            if (!waiting->armed) continue;
            waiting->armed = false;
            for (FakeQueuePair* pair : waiting->pairs) record_of(*pair).armed = false;
            channel.events.push_back(waiting);
          }
        }
      }
      if (!channel.events.empty()) {
        *queue = channel.events.front();
        *user = channel.events.front()->cq_context;
        channel.events.pop_front();
        return 0;
      }
    }
    if ((::fcntl(channel.fd, F_GETFL) & O_NONBLOCK) != 0) {
      errno = EAGAIN;
      return -1;
    }
    pollfd ready{channel.fd, POLLIN, 0};
    if (::poll(&ready, 1, -1) < 0 && errno != EINTR) return -1;
  }
}

EXPORT void ibv_ack_cq_events(abi::Cq* queue, unsigned count) {
  queue->comp_events_completed += count;
}

}  // namespace mm::fakeverbs
