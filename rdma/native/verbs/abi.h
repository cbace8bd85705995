#pragma once

#include <pthread.h>

#include <cstddef>
#include <cstdint>

// The part of the verbs interface that the link uses: the binary layout of Linux's libibverbs (rdma-core), which
// macOS's librdma takes over. Declared here because neither library is needed to build; native/tests/test_verbs_abi.cpp
// compares every size, offset and number with the system's header where there is one.
//
// The calls of the data path (post_send, post_recv, poll_cq, req_notify_cq) are no symbols of the library: they go
// through the table in the context. All others are looked up by name, see library.h.
namespace mm::verbs::abi {

inline constexpr std::uint8_t kPortActive = 4;
inline constexpr std::uint8_t kPortDown = 1;

inline constexpr std::uint8_t kLinkLayerEthernet = 2;
// Apple's addition: ports of the Thunderbolt controller.
inline constexpr std::uint8_t kLinkLayerThunderbolt = 100;

enum QpType : std::uint32_t { kQpRc = 2, kQpUc = 3 };

enum QpState : std::uint32_t { kReset, kInit, kReadyToReceive, kReadyToSend, kSendDrain, kSendError, kError };

enum QpMask : int {
  kMaskState = 1 << 0,
  kMaskAccess = 1 << 3,
  kMaskPkeyIndex = 1 << 4,
  kMaskPort = 1 << 5,
  kMaskAddress = 1 << 7,
  kMaskPathMtu = 1 << 8,
  kMaskTimeout = 1 << 9,
  kMaskRetries = 1 << 10,
  kMaskNotReadyRetries = 1 << 11,
  kMaskReceiveSequence = 1 << 12,
  kMaskMaxReads = 1 << 13,
  kMaskNotReadyTimer = 1 << 15,
  kMaskSendSequence = 1 << 16,
  kMaskMaxDestReads = 1 << 17,
  kMaskCapacity = 1 << 19,
  kMaskRemoteNumber = 1 << 20,
};

enum Access : int { kLocalWrite = 1, kRemoteWrite = 2, kRemoteRead = 4 };

enum WrOpcode : std::uint32_t { kWrSend = 2 };
enum SendFlags : std::uint32_t { kSignaled = 1 << 1, kSolicited = 1 << 2 };

enum WcOpcode : std::uint32_t { kWcSend = 0, kWcReceive = 1 << 7 };

// Of the completion statuses, those that the link or the fake library tells apart.
enum WcStatus : std::uint32_t {
  kSuccess = 0,
  kLocalLengthError = 1,
  kLocalProtectionError = 4,
  kFlushed = 5,
  kRemoteInvalidRequest = 9,
  kRetriesExceeded = 12,
  kNotReadyRetriesExceeded = 13,
  kGeneralError = 21,
};

// In network byte order.
union Gid {
  std::uint8_t raw[16];
  struct {
    std::uint64_t subnet_prefix;
    std::uint64_t interface_id;
  } global;
};

struct DeviceAttr {
  char fw_ver[64];
  std::uint64_t node_guid;  // network byte order
  std::uint64_t sys_image_guid;
  std::uint64_t max_mr_size;
  std::uint64_t page_size_cap;
  std::uint32_t vendor_id;
  std::uint32_t vendor_part_id;
  std::uint32_t hw_ver;
  int max_qp;
  int max_qp_wr;
  std::uint32_t device_cap_flags;
  int max_sge;
  int max_sge_rd;
  int max_cq;
  int max_cqe;
  int max_mr;
  int max_pd;
  int max_qp_rd_atom;
  int max_ee_rd_atom;
  int max_res_rd_atom;
  int max_qp_init_rd_atom;
  int max_ee_init_rd_atom;
  std::uint32_t atomic_cap;
  int max_ee;
  int max_rdd;
  int max_mw;
  int max_raw_ipv6_qp;
  int max_raw_ethy_qp;
  int max_mcast_grp;
  int max_mcast_qp_attach;
  int max_total_mcast_qp_attach;
  int max_ah;
  int max_fmr;
  int max_map_per_fmr;
  int max_srq;
  int max_srq_wr;
  int max_srq_sge;
  std::uint16_t max_pkeys;
  std::uint8_t local_ca_ack_delay;
  std::uint8_t phys_port_cnt;
};

struct PortAttr {
  std::uint32_t state;
  std::uint32_t max_mtu;
  std::uint32_t active_mtu;
  int gid_tbl_len;
  std::uint32_t port_cap_flags;
  std::uint32_t max_msg_sz;
  std::uint32_t bad_pkey_cntr;
  std::uint32_t qkey_viol_cntr;
  std::uint16_t pkey_tbl_len;
  std::uint16_t lid;
  std::uint16_t sm_lid;
  std::uint8_t lmc;
  std::uint8_t max_vl_num;
  std::uint8_t sm_sl;
  std::uint8_t subnet_timeout;
  std::uint8_t init_type_reply;
  std::uint8_t active_width;
  std::uint8_t active_speed;
  std::uint8_t phys_state;
  std::uint8_t link_layer;
  std::uint8_t flags;
  std::uint16_t port_cap_flags2;
  // Later versions of the library add fields: they may be written, so keep room for them.
  std::uint32_t reserved[16];
};

struct Device;
struct Context;
struct Srq;
struct CompChannel;

struct Pd {
  Context* context;
  std::uint32_t handle;
};

struct Mr {
  Context* context;
  Pd* pd;
  void* addr;
  std::size_t length;
  std::uint32_t handle;
  std::uint32_t lkey;
  std::uint32_t rkey;
};

struct CompChannel {
  Context* context;
  int fd;
  int refcnt;
};

struct Cq {
  Context* context;
  CompChannel* channel;
  void* cq_context;
  std::uint32_t handle;
  int cqe;
  pthread_mutex_t mutex;
  pthread_cond_t cond;
  std::uint32_t comp_events_completed;
  std::uint32_t async_events_completed;
};

struct QpCap {
  std::uint32_t max_send_wr;
  std::uint32_t max_recv_wr;
  std::uint32_t max_send_sge;
  std::uint32_t max_recv_sge;
  std::uint32_t max_inline_data;
};

struct QpInitAttr {
  void* qp_context;
  Cq* send_cq;
  Cq* recv_cq;
  Srq* srq;
  QpCap cap;
  std::uint32_t qp_type;
  int sq_sig_all;
};

struct GlobalRoute {
  Gid dgid;
  std::uint32_t flow_label;
  std::uint8_t sgid_index;
  std::uint8_t hop_limit;
  std::uint8_t traffic_class;
};

struct AhAttr {
  GlobalRoute grh;
  std::uint16_t dlid;
  std::uint8_t sl;
  std::uint8_t src_path_bits;
  std::uint8_t static_rate;
  std::uint8_t is_global;
  std::uint8_t port_num;
};

struct QpAttr {
  std::uint32_t qp_state;
  std::uint32_t cur_qp_state;
  std::uint32_t path_mtu;
  std::uint32_t path_mig_state;
  std::uint32_t qkey;
  std::uint32_t rq_psn;
  std::uint32_t sq_psn;
  std::uint32_t dest_qp_num;
  std::uint32_t qp_access_flags;
  QpCap cap;
  AhAttr ah_attr;
  AhAttr alt_ah_attr;
  std::uint16_t pkey_index;
  std::uint16_t alt_pkey_index;
  std::uint8_t en_sqd_async_notify;
  std::uint8_t sq_draining;
  std::uint8_t max_rd_atomic;
  std::uint8_t max_dest_rd_atomic;
  std::uint8_t min_rnr_timer;
  std::uint8_t port_num;
  std::uint8_t timeout;
  std::uint8_t retry_cnt;
  std::uint8_t rnr_retry;
  std::uint8_t alt_port_num;
  std::uint8_t alt_timeout;
  std::uint32_t rate_limit;
};

struct Qp {
  Context* context;
  void* qp_context;
  Pd* pd;
  Cq* send_cq;
  Cq* recv_cq;
  Srq* srq;
  std::uint32_t handle;
  std::uint32_t qp_num;
  std::uint32_t state;
  std::uint32_t qp_type;
  pthread_mutex_t mutex;
  pthread_cond_t cond;
  std::uint32_t events_completed;
};

struct Sge {
  std::uint64_t addr;
  std::uint32_t length;
  std::uint32_t lkey;
};

struct SendWr {
  std::uint64_t wr_id;
  SendWr* next;
  Sge* sg_list;
  int num_sge;
  std::uint32_t opcode;
  std::uint32_t send_flags;
  std::uint32_t imm_data;
  // What only other operations than a send use: a library may read it, so it is there and zero.
  std::uint64_t unused[11];
};

struct RecvWr {
  std::uint64_t wr_id;
  RecvWr* next;
  Sge* sg_list;
  int num_sge;
};

struct Wc {
  std::uint64_t wr_id;
  std::uint32_t status;
  std::uint32_t opcode;
  std::uint32_t vendor_err;
  std::uint32_t byte_len;
  std::uint32_t imm_data;
  std::uint32_t qp_num;
  std::uint32_t src_qp;
  std::uint32_t wc_flags;
  std::uint16_t pkey_index;
  std::uint16_t slid;
  std::uint8_t sl;
  std::uint8_t dlid_path_bits;
};

// The table of the context: 32 entries, of which these four are called.
struct ContextOps {
  void* before_poll[11];
  int (*poll_cq)(Cq*, int entries, Wc*);
  int (*req_notify_cq)(Cq*, int solicited_only);
  void* between[12];
  int (*post_send)(Qp*, SendWr*, SendWr** bad);
  int (*post_recv)(Qp*, RecvWr*, RecvWr** bad);
  void* after_post[5];
};

struct Context {
  Device* device;
  ContextOps ops;
  int cmd_fd;
  int async_fd;
  int num_comp_vectors;
  pthread_mutex_t mutex;
  void* abi_compat;
};

struct Device {
  void* unused_ops[2];
  std::int32_t node_type;
  std::int32_t transport_type;
  char name[64];
  char dev_name[64];
  char dev_path[256];
  char ibdev_path[256];
};

}  // namespace mm::verbs::abi
