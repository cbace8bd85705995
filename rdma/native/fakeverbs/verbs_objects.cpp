// The interface's calls that make, change and destroy objects.

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

#include <unistd.h>

#include "fakeverbs/exports.h"
#include "fakeverbs/flight.h"

namespace mm::fakeverbs {
namespace {

std::shared_ptr<Mapped> map_named() {
  const char* name = std::getenv("MACMESH_FAKEVERBS");
  return std::make_shared<Mapped>(name != nullptr ? name : "");
}

std::unique_ptr<FakeDevice> make_device(const std::shared_ptr<Mapped>& mapped, std::uint32_t index, bool alone) {
  const DeviceRecord& record = mapped->segment().devices[index];
  auto device = std::make_unique<FakeDevice>();
  static_cast<abi::Device&>(*device) = {};
  device->mapped = mapped;
  device->index = index;
  device->node_type = 1;
  device->transport_type = mapped->segment().settings.thunderbolt ? abi::kLinkLayerThunderbolt : 0;
  const std::string name = alone ? record.name : std::string(record.host) + "_" + record.name;
  const std::size_t length = std::min(name.size(), sizeof device->name - 1);
  std::memcpy(device->name, name.data(), length);
  std::memcpy(device->dev_name, name.data(), length);
  return device;
}

template <typename Value>
Value* refuse(int error) {
  errno = error;
  return nullptr;
}

}  // namespace

EXPORT abi::Device** ibv_get_device_list(int* count) {
  std::shared_ptr<Mapped> mapped;
  try {
    mapped = map_named();
  } catch (const std::exception& error) {
    return refuse<abi::Device*>(ENOENT);
  }
  const char* host = std::getenv("MACMESH_FAKEVERBS_HOST");
  const bool alone = host != nullptr && *host != '\0';
  const Segment& segment = mapped->segment();
  auto** list = static_cast<abi::Device**>(std::calloc(segment.devices_count + 1, sizeof(abi::Device*)));
  if (list == nullptr) return refuse<abi::Device*>(ENOMEM);
  int found = 0;
  for (std::uint32_t i = 0; i < segment.devices_count; ++i) {
    if (!alone || std::strcmp(host, segment.devices[i].host) == 0) {
      list[found++] = make_device(mapped, i, alone).release();
    }
  }
  if (count != nullptr) *count = found;
  return list;
}

EXPORT void ibv_free_device_list(abi::Device** list) {
  for (abi::Device** at = list; at != nullptr && *at != nullptr; ++at) delete static_cast<FakeDevice*>(*at);
  std::free(list);
}

EXPORT const char* ibv_get_device_name(abi::Device* device) { return device->name; }

EXPORT abi::Context* ibv_open_device(abi::Device* device) {
  auto* context = new FakeContext();
  context->own = *static_cast<FakeDevice*>(device);
  context->device = &context->own;
  context->ops.poll_cq = poll_queue;
  context->ops.req_notify_cq = request_notification;
  context->ops.post_send = post_send;
  context->ops.post_recv = post_receive;
  context->cmd_fd = context->async_fd = -1;
  context->num_comp_vectors = 1;
  return context;
}

EXPORT int ibv_close_device(abi::Context* context) {
  delete &of(context);
  return 0;
}

EXPORT int ibv_query_device(abi::Context* context, abi::DeviceAttr* attr) {
  const FakeDevice& device = of(context).own;
  const Settings& settings = device.mapped->segment().settings;
  const Locked locked(device.mapped->segment());
  *attr = {};
  std::strcpy(attr->fw_ver, "fake");
  const unsigned char guid[8] = {0x02, 0xfa, 0xce, 0, 0, 0, static_cast<unsigned char>(device.index >> 8),
                                 static_cast<unsigned char>(device.index)};
  std::memcpy(&attr->node_guid, guid, sizeof guid);
  attr->sys_image_guid = attr->node_guid;
  attr->max_mr_size = settings.region_bytes;
  attr->page_size_cap = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  attr->max_qp = static_cast<int>(settings.queue_pairs);
  attr->max_qp_wr = static_cast<int>(settings.requests);
  attr->max_cq = static_cast<int>(settings.queue_pairs) * 2;
  attr->max_cqe = static_cast<int>(settings.completions);
  attr->max_mr = static_cast<int>(settings.regions);
  attr->max_pd = 16;
  attr->max_sge = 1;
  attr->max_pkeys = 1;
  attr->phys_port_cnt = 1;
  return 0;
}

EXPORT int ibv_query_port(abi::Context* context, std::uint8_t port, abi::PortAttr* attr) {
  const FakeDevice& device = of(context).own;
  Segment& segment = device.mapped->segment();
  if (port != 1) return EINVAL;
  const Locked locked(segment);
  const DeviceRecord& record = segment.devices[device.index];
  // Only what callers of any version have room for.
  std::memset(attr, 0, offsetof(abi::PortAttr, port_cap_flags2));
  attr->state = record.cable != kNone && segment.cables[record.cable].up ? abi::kPortActive : abi::kPortDown;
  attr->max_mtu = attr->active_mtu = 5;
  attr->gid_tbl_len = kGids;
  attr->max_msg_sz = static_cast<std::uint32_t>(segment.settings.message_bytes);
  attr->pkey_tbl_len = 1;
  attr->lid = static_cast<std::uint16_t>(device.index + 1);
  attr->link_layer = segment.settings.thunderbolt ? abi::kLinkLayerThunderbolt : abi::kLinkLayerEthernet;
  return 0;
}

EXPORT int ibv_query_gid(abi::Context* context, std::uint8_t port, int index, abi::Gid* gid) {
  const FakeDevice& device = of(context).own;
  if (port != 1 || index < 0 || index >= kGids) return -1;
  *gid = gid_of(device.mapped->segment(), device.index, index);
  return 0;
}

EXPORT abi::Pd* ibv_alloc_pd(abi::Context* context) {
  auto* domain = new FakeDomain();
  domain->context = context;
  domain->owner = &of(context);
  return domain;
}

EXPORT int ibv_dealloc_pd(abi::Pd* domain) {
  delete static_cast<FakeDomain*>(domain);
  return 0;
}

EXPORT abi::Mr* ibv_reg_mr(abi::Pd* domain, void* address, std::size_t bytes, int access) {
  FakeContext& context = *static_cast<FakeDomain*>(domain)->owner;
  Mapped& mapped = *context.own.mapped;
  Segment& segment = mapped.segment();
  const Locked locked(segment);
  const Settings& settings = segment.settings;
  constexpr int kAll = abi::kLocalWrite | abi::kRemoteWrite | abi::kRemoteRead;
  const bool right = settings.rights == 0 || access == (settings.rights == 1 ? int{abi::kLocalWrite} : kAll);
  if (!right || bytes == 0 || bytes > settings.region_bytes) return refuse<abi::Mr>(EINVAL);
  const auto count = [&] {
    return std::count_if(std::begin(segment.regions), std::end(segment.regions),
                         [&](const RegionRecord& r) { return r.used && r.device == context.own.index; });
  };
  if (count() >= static_cast<std::ptrdiff_t>(settings.regions)) bury_the_dead(mapped);
  if (count() >= static_cast<std::ptrdiff_t>(settings.regions)) return refuse<abi::Mr>(ENOMEM);
  auto* record = std::find_if(std::begin(segment.regions), std::end(segment.regions),
                              [](const RegionRecord& r) { return !r.used; });
  if (record == std::end(segment.regions)) return refuse<abi::Mr>(ENOMEM);
  auto* region = new FakeRegion();
  region->context = domain->context;
  region->pd = domain;
  region->addr = address;
  region->length = bytes;
  region->owner = &context;
  region->record = static_cast<std::uint32_t>(record - segment.regions);
  region->handle = region->record;
  region->lkey = region->rkey = region->record + 1;
  *record = {true, static_cast<std::int32_t>(::getpid()), context.own.index};
  context.regions[region->lkey] = region;
  return region;
}

EXPORT int ibv_dereg_mr(abi::Mr* mr) {
  auto* region = static_cast<FakeRegion*>(mr);
  Segment& segment = region->owner->own.mapped->segment();
  const Locked locked(segment);
  region->owner->regions.erase(region->lkey);
  segment.regions[region->record].used = false;
  delete region;
  return 0;
}

EXPORT abi::CompChannel* ibv_create_comp_channel(abi::Context* context) {
  Mapped& mapped = *of(context).own.mapped;
  if (!mapped.segment().settings.events) return refuse<abi::CompChannel>(EOPNOTSUPP);
  static std::atomic<std::uint32_t> made{0};
  auto channel = std::make_unique<FakeChannel>();
  channel->context = context;
  // Numbers of other processes differ in the upper bits.
  channel->number = static_cast<std::uint32_t>(::getpid()) << 12 | (made++ & 0xfffU);
  try {
    channel->waiter = std::make_unique<Waiter>(mapped.name(), channel->number);
  } catch (const std::system_error& error) {
    return refuse<abi::CompChannel>(error.code().value());
  }
  channel->fd = channel->waiter->descriptor();
  return channel.release();
}

EXPORT int ibv_destroy_comp_channel(abi::CompChannel* channel) {
  if (!of(channel).queues.empty()) return EBUSY;
  delete &of(channel);
  return 0;
}

EXPORT abi::Cq* ibv_create_cq(abi::Context* context, int entries, void* user, abi::CompChannel* channel, int vector) {
  Segment& segment = of(context).own.mapped->segment();
  const Locked locked(segment);
  if (entries <= 0 || vector != 0) return refuse<abi::Cq>(EINVAL);
  if (static_cast<std::uint32_t>(entries) > segment.settings.completions) return refuse<abi::Cq>(ENOMEM);
  auto* queue = new FakeQueue();
  queue->context = context;
  queue->channel = channel;
  queue->cq_context = user;
  queue->cqe = entries;
  queue->owner = &of(context);
  if (channel != nullptr) {
    queue->waits_on = &of(channel);
    of(channel).queues.push_back(queue);
  }
  return queue;
}

EXPORT int ibv_destroy_cq(abi::Cq* cq) {
  FakeQueue& queue = of(cq);
  const Locked locked(queue.owner->own.mapped->segment());
  if (!queue.pairs.empty()) return EBUSY;
  if (queue.waits_on != nullptr) {
    std::erase(queue.waits_on->queues, &queue);
    std::erase(queue.waits_on->events, &queue);
  }
  delete &queue;
  return 0;
}

EXPORT abi::Qp* ibv_create_qp(abi::Pd* domain, abi::QpInitAttr* init) {
  FakeContext& context = *static_cast<FakeDomain*>(domain)->owner;
  Mapped& mapped = *context.own.mapped;
  Segment& segment = mapped.segment();
  const Locked locked(segment);
  const Settings& settings = segment.settings;
  if (init->qp_type == abi::kQpRc && !settings.reliable) return refuse<abi::Qp>(EOPNOTSUPP);
  if ((init->qp_type != abi::kQpRc && init->qp_type != abi::kQpUc) || init->send_cq == nullptr ||
      init->recv_cq == nullptr || init->cap.max_send_sge > 1 || init->cap.max_recv_sge > 1 ||
      init->cap.max_send_wr > settings.requests || init->cap.max_recv_wr > settings.requests) {
    return refuse<abi::Qp>(EINVAL);
  }
  const auto count = [&] {
    return std::count_if(std::begin(segment.queue_pairs), std::end(segment.queue_pairs),
                         [&](const QueuePairRecord& r) { return r.used && r.device == context.own.index; });
  };
  if (count() >= static_cast<std::ptrdiff_t>(settings.queue_pairs)) bury_the_dead(mapped);
  if (count() >= static_cast<std::ptrdiff_t>(settings.queue_pairs)) return refuse<abi::Qp>(EBUSY);
  auto* record = std::find_if(std::begin(segment.queue_pairs), std::end(segment.queue_pairs),
                              [](const QueuePairRecord& r) { return !r.used; });
  if (record == std::end(segment.queue_pairs)) return refuse<abi::Qp>(EBUSY);
  auto* pair = new FakeQueuePair();
  pair->context = domain->context;
  pair->qp_context = init->qp_context;
  pair->pd = domain;
  pair->send_cq = init->send_cq;
  pair->recv_cq = init->recv_cq;
  pair->owner = &context;
  pair->cap = init->cap;
  pair->qp_type = init->qp_type;
  pair->record = pair->handle = static_cast<std::uint32_t>(record - segment.queue_pairs);
  constexpr std::uint32_t kGenerations = (1U << 24) / kMostQueuePairs - 1;
  segment.generation = segment.generation % kGenerations + 1;
  pair->qp_num = segment.generation * kMostQueuePairs + pair->record;
  record->used = true;
  record->pid = static_cast<std::int32_t>(::getpid());
  record->device = context.own.index;
  record->number = pair->qp_num;
  record->type = init->qp_type;
  record->state = pair->state = abi::kReset;
  record->remote_number = 0;
  record->receives = record->inbox_count = 0;
  record->inbox_first = record->inbox_last = kNone;
  record->attention = kNever;
  record->armed = false;
  of(init->send_cq).pairs.push_back(pair);
  if (init->recv_cq != init->send_cq) of(init->recv_cq).pairs.push_back(pair);
  return pair;
}

EXPORT int ibv_destroy_qp(abi::Qp* qp) {
  FakeQueuePair& pair = of(qp);
  const Locked locked(mapped_of(pair).segment());
  forget(pair);
  for (abi::Cq* cq : {pair.send_cq, pair.recv_cq}) {
    FakeQueue& queue = of(cq);
    std::erase(queue.pairs, &pair);
    std::erase_if(queue.finished, [&](const Finished& finished) { return finished.pair == &pair; });
  }
  delete &pair;
  return 0;
}

EXPORT int ibv_query_qp(abi::Qp* qp, abi::QpAttr* attr, int, abi::QpInitAttr* init) {
  FakeQueuePair& pair = of(qp);
  const Locked locked(mapped_of(pair).segment());
  *attr = pair.attr;
  attr->qp_state = attr->cur_qp_state = pair.state;
  attr->cap = pair.cap;
  if (init != nullptr) {
    *init = {};
    init->qp_context = pair.qp_context;
    init->send_cq = pair.send_cq;
    init->recv_cq = pair.recv_cq;
    init->cap = pair.cap;
    init->qp_type = pair.qp_type;
  }
  return 0;
}

EXPORT int ibv_modify_qp(abi::Qp* qp, abi::QpAttr* attr, int mask) {
  FakeQueuePair& pair = of(qp);
  const Locked locked(mapped_of(pair).segment());
  return modify(pair, *attr, mask);
}

EXPORT const char* ibv_wc_status_str(std::uint32_t status) {
  switch (status) {
    case abi::kSuccess: return "success";
    case abi::kLocalLengthError: return "local length error";
    case abi::kLocalProtectionError: return "local protection error";
    case abi::kFlushed: return "flushed";
    case abi::kRemoteInvalidRequest: return "remote invalid request";
    case abi::kRetriesExceeded: return "retries exceeded";
    case abi::kNotReadyRetriesExceeded: return "receiver-not-ready retries exceeded";
    default: return "general error";
  }
}

}  // namespace mm::fakeverbs
