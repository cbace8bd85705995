// Our declarations of the verbs interface against the system's header. Without the header there is nothing to compare:
// on Debian it comes with libibverbs-dev, on a Mac with the SDK of macOS 26.2 or later.

#include "tests/check.h"
#include "verbs/abi.h"

#if __has_include(<infiniband/verbs.h>)
#include <infiniband/verbs.h>

namespace abi = mm::verbs::abi;

#define SAME_SIZE(ours, theirs) CHECK(sizeof(abi::ours) == sizeof(theirs))
#define SAME(ours, theirs, field)                                          \
  CHECK(offsetof(abi::ours, field) == offsetof(theirs, field));            \
  CHECK(sizeof(static_cast<abi::ours*>(nullptr)->field) == sizeof(static_cast<theirs*>(nullptr)->field))

TEST(requests_and_completions) {
  SAME_SIZE(Sge, ibv_sge);
  SAME(Sge, ibv_sge, addr);
  SAME(Sge, ibv_sge, length);
  SAME(Sge, ibv_sge, lkey);
  SAME_SIZE(SendWr, ibv_send_wr);
  SAME(SendWr, ibv_send_wr, wr_id);
  SAME(SendWr, ibv_send_wr, next);
  SAME(SendWr, ibv_send_wr, sg_list);
  SAME(SendWr, ibv_send_wr, num_sge);
  SAME(SendWr, ibv_send_wr, opcode);
  SAME(SendWr, ibv_send_wr, send_flags);
  SAME(SendWr, ibv_send_wr, imm_data);
  SAME_SIZE(RecvWr, ibv_recv_wr);
  SAME(RecvWr, ibv_recv_wr, next);
  SAME(RecvWr, ibv_recv_wr, sg_list);
  SAME(RecvWr, ibv_recv_wr, num_sge);
  SAME_SIZE(Wc, ibv_wc);
  SAME(Wc, ibv_wc, wr_id);
  SAME(Wc, ibv_wc, status);
  SAME(Wc, ibv_wc, opcode);
  SAME(Wc, ibv_wc, vendor_err);
  SAME(Wc, ibv_wc, byte_len);
  SAME(Wc, ibv_wc, qp_num);
  SAME(Wc, ibv_wc, src_qp);
  SAME(Wc, ibv_wc, wc_flags);
}

TEST(objects) {
  SAME_SIZE(Gid, ibv_gid);
  SAME_SIZE(Pd, ibv_pd);
  SAME(Pd, ibv_pd, handle);
  SAME_SIZE(Mr, ibv_mr);
  SAME(Mr, ibv_mr, addr);
  SAME(Mr, ibv_mr, length);
  SAME(Mr, ibv_mr, lkey);
  SAME(Mr, ibv_mr, rkey);
  SAME_SIZE(CompChannel, ibv_comp_channel);
  SAME(CompChannel, ibv_comp_channel, fd);
  SAME_SIZE(Cq, ibv_cq);
  SAME(Cq, ibv_cq, channel);
  SAME(Cq, ibv_cq, cq_context);
  SAME(Cq, ibv_cq, cqe);
  SAME(Cq, ibv_cq, comp_events_completed);
  SAME_SIZE(Qp, ibv_qp);
  SAME(Qp, ibv_qp, qp_context);
  SAME(Qp, ibv_qp, send_cq);
  SAME(Qp, ibv_qp, recv_cq);
  SAME(Qp, ibv_qp, qp_num);
  SAME(Qp, ibv_qp, state);
  SAME(Qp, ibv_qp, qp_type);
  SAME_SIZE(Device, ibv_device);
  SAME(Device, ibv_device, node_type);
  SAME(Device, ibv_device, transport_type);
  SAME(Device, ibv_device, name);
  SAME(Device, ibv_device, dev_name);
}

TEST(attributes) {
  SAME_SIZE(DeviceAttr, ibv_device_attr);
  SAME(DeviceAttr, ibv_device_attr, node_guid);
  SAME(DeviceAttr, ibv_device_attr, max_mr_size);
  SAME(DeviceAttr, ibv_device_attr, max_qp);
  SAME(DeviceAttr, ibv_device_attr, max_qp_wr);
  SAME(DeviceAttr, ibv_device_attr, max_sge);
  SAME(DeviceAttr, ibv_device_attr, max_cqe);
  SAME(DeviceAttr, ibv_device_attr, max_mr);
  SAME(DeviceAttr, ibv_device_attr, max_srq_sge);
  SAME(DeviceAttr, ibv_device_attr, phys_port_cnt);
  CHECK(sizeof(abi::PortAttr) >= sizeof(ibv_port_attr));
  SAME(PortAttr, ibv_port_attr, state);
  SAME(PortAttr, ibv_port_attr, active_mtu);
  SAME(PortAttr, ibv_port_attr, gid_tbl_len);
  SAME(PortAttr, ibv_port_attr, max_msg_sz);
  SAME(PortAttr, ibv_port_attr, lid);
  SAME(PortAttr, ibv_port_attr, link_layer);
  SAME(PortAttr, ibv_port_attr, port_cap_flags2);
  SAME_SIZE(QpCap, ibv_qp_cap);
  SAME_SIZE(QpInitAttr, ibv_qp_init_attr);
  SAME(QpInitAttr, ibv_qp_init_attr, send_cq);
  SAME(QpInitAttr, ibv_qp_init_attr, cap);
  SAME(QpInitAttr, ibv_qp_init_attr, qp_type);
  SAME(QpInitAttr, ibv_qp_init_attr, sq_sig_all);
  SAME_SIZE(AhAttr, ibv_ah_attr);
  SAME(AhAttr, ibv_ah_attr, grh);
  SAME(AhAttr, ibv_ah_attr, grh.sgid_index);
  SAME(AhAttr, ibv_ah_attr, grh.hop_limit);
  SAME(AhAttr, ibv_ah_attr, dlid);
  SAME(AhAttr, ibv_ah_attr, is_global);
  SAME(AhAttr, ibv_ah_attr, port_num);
  SAME_SIZE(QpAttr, ibv_qp_attr);
  SAME(QpAttr, ibv_qp_attr, qp_state);
  SAME(QpAttr, ibv_qp_attr, path_mtu);
  SAME(QpAttr, ibv_qp_attr, rq_psn);
  SAME(QpAttr, ibv_qp_attr, sq_psn);
  SAME(QpAttr, ibv_qp_attr, dest_qp_num);
  SAME(QpAttr, ibv_qp_attr, qp_access_flags);
  SAME(QpAttr, ibv_qp_attr, cap);
  SAME(QpAttr, ibv_qp_attr, ah_attr);
  SAME(QpAttr, ibv_qp_attr, pkey_index);
  SAME(QpAttr, ibv_qp_attr, min_rnr_timer);
  SAME(QpAttr, ibv_qp_attr, port_num);
  SAME(QpAttr, ibv_qp_attr, timeout);
  SAME(QpAttr, ibv_qp_attr, retry_cnt);
  SAME(QpAttr, ibv_qp_attr, rnr_retry);
  SAME(QpAttr, ibv_qp_attr, max_rd_atomic);
  SAME(QpAttr, ibv_qp_attr, max_dest_rd_atomic);
}

TEST(the_table_of_the_context) {
  SAME_SIZE(Context, ibv_context);
  SAME_SIZE(ContextOps, ibv_context_ops);
  SAME(Context, ibv_context, ops);
  SAME(Context, ibv_context, async_fd);
  SAME(Context, ibv_context, num_comp_vectors);
  SAME(ContextOps, ibv_context_ops, poll_cq);
  SAME(ContextOps, ibv_context_ops, req_notify_cq);
  SAME(ContextOps, ibv_context_ops, post_send);
  SAME(ContextOps, ibv_context_ops, post_recv);
}

TEST(numbers) {
#define SAME_NUMBER(ours, theirs) CHECK(static_cast<unsigned long>(abi::ours) == static_cast<unsigned long>(theirs))
  SAME_NUMBER(kPortActive, IBV_PORT_ACTIVE);
  SAME_NUMBER(kPortDown, IBV_PORT_DOWN);
  SAME_NUMBER(kLinkLayerEthernet, IBV_LINK_LAYER_ETHERNET);
#if defined(__APPLE__)
  SAME_NUMBER(kLinkLayerThunderbolt, IBV_LINK_LAYER_THUNDERBOLT);
#endif
  SAME_NUMBER(kQpRc, IBV_QPT_RC);
  SAME_NUMBER(kQpUc, IBV_QPT_UC);
  SAME_NUMBER(kReset, IBV_QPS_RESET);
  SAME_NUMBER(kInit, IBV_QPS_INIT);
  SAME_NUMBER(kReadyToReceive, IBV_QPS_RTR);
  SAME_NUMBER(kReadyToSend, IBV_QPS_RTS);
  SAME_NUMBER(kError, IBV_QPS_ERR);
  SAME_NUMBER(kMaskState, IBV_QP_STATE);
  SAME_NUMBER(kMaskAccess, IBV_QP_ACCESS_FLAGS);
  SAME_NUMBER(kMaskPkeyIndex, IBV_QP_PKEY_INDEX);
  SAME_NUMBER(kMaskPort, IBV_QP_PORT);
  SAME_NUMBER(kMaskAddress, IBV_QP_AV);
  SAME_NUMBER(kMaskPathMtu, IBV_QP_PATH_MTU);
  SAME_NUMBER(kMaskTimeout, IBV_QP_TIMEOUT);
  SAME_NUMBER(kMaskRetries, IBV_QP_RETRY_CNT);
  SAME_NUMBER(kMaskNotReadyRetries, IBV_QP_RNR_RETRY);
  SAME_NUMBER(kMaskReceiveSequence, IBV_QP_RQ_PSN);
  SAME_NUMBER(kMaskMaxReads, IBV_QP_MAX_QP_RD_ATOMIC);
  SAME_NUMBER(kMaskNotReadyTimer, IBV_QP_MIN_RNR_TIMER);
  SAME_NUMBER(kMaskSendSequence, IBV_QP_SQ_PSN);
  SAME_NUMBER(kMaskMaxDestReads, IBV_QP_MAX_DEST_RD_ATOMIC);
  SAME_NUMBER(kMaskCapacity, IBV_QP_CAP);
  SAME_NUMBER(kMaskRemoteNumber, IBV_QP_DEST_QPN);
  SAME_NUMBER(kLocalWrite, IBV_ACCESS_LOCAL_WRITE);
  SAME_NUMBER(kRemoteWrite, IBV_ACCESS_REMOTE_WRITE);
  SAME_NUMBER(kRemoteRead, IBV_ACCESS_REMOTE_READ);
  SAME_NUMBER(kWrSend, IBV_WR_SEND);
  SAME_NUMBER(kSignaled, IBV_SEND_SIGNALED);
  SAME_NUMBER(kSolicited, IBV_SEND_SOLICITED);
  SAME_NUMBER(kWcSend, IBV_WC_SEND);
  SAME_NUMBER(kWcReceive, IBV_WC_RECV);
  SAME_NUMBER(kSuccess, IBV_WC_SUCCESS);
  SAME_NUMBER(kLocalLengthError, IBV_WC_LOC_LEN_ERR);
  SAME_NUMBER(kLocalProtectionError, IBV_WC_LOC_PROT_ERR);
  SAME_NUMBER(kFlushed, IBV_WC_WR_FLUSH_ERR);
  SAME_NUMBER(kRemoteInvalidRequest, IBV_WC_REM_INV_REQ_ERR);
  SAME_NUMBER(kRetriesExceeded, IBV_WC_RETRY_EXC_ERR);
  SAME_NUMBER(kNotReadyRetriesExceeded, IBV_WC_RNR_RETRY_EXC_ERR);
  SAME_NUMBER(kGeneralError, IBV_WC_GENERAL_ERR);
}

CHECK_MAIN

#else

#include <cstdio>

int main() {
  std::puts("skipped: there is no <infiniband/verbs.h> here (Debian: libibverbs-dev) to compare the layout with");
  return 77;
}

#endif
