#pragma once

#include "fakeverbs/objects.h"

// The calls of the interface: symbols of the shared object, and those that are reached through the context's table.
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace mm::fakeverbs {

int poll_queue(abi::Cq* queue, int entries, abi::Wc* into);
int request_notification(abi::Cq* queue, int solicited_only);
int post_send(abi::Qp* pair, abi::SendWr* request, abi::SendWr** bad);
int post_receive(abi::Qp* pair, abi::RecvWr* request, abi::RecvWr** bad);

// A step of the state machine, under the segment's lock: RESET, INIT, ready to receive, ready to send, in this order,
// each with all its attributes; ERROR from anywhere. Returns EINVAL for anything else.
int modify(FakeQueuePair& pair, const abi::QpAttr& attr, int mask);

}  // namespace mm::fakeverbs
