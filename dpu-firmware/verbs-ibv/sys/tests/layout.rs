//! Compares our declarations with the installed headers, by the C compiler. Without headers or
//! compiler there is nothing to compare with, which the test says.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::process::{Command, Stdio};

use lunar_verbs_ibv_sys::*;

/// One assertion for each named field, and for the size where the structure is whole.
macro_rules! layout {
    ($out:ident, $c:literal, $rust:ty, whole, $($field:tt)*) => {
        writeln!($out, "SIZE(struct {}, {});", $c, size_of::<$rust>()).unwrap();
        layout!($out, $c, $rust, part, $($field)*);
    };
    ($out:ident, $c:literal, $rust:ty, part, $($field:ident)*) => {
        $(writeln!(
            $out,
            "OFFSET(struct {}, {}, {});",
            $c, stringify!($field), offset_of!($rust, $field)
        ).unwrap();)*
    };
}

fn source() -> String {
    let mut out = String::from(
        "#include <stddef.h>\n#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n\
         #define OFFSET(t, f, o) _Static_assert(offsetof(t, f) == (o), #t \".\" #f)\n\
         #define SIZE(t, s) _Static_assert(sizeof(t) == (s), #t)\n\
         #define VALUE(n, v) _Static_assert((n) == (v), #n)\n",
    );
    layout!(out, "ibv_context", ibv_context, whole, device ops cmd_fd async_fd num_comp_vectors
        mutex abi_compat);
    layout!(out, "ibv_context_ops", ibv_context_ops, whole, poll_cq req_notify_cq post_srq_recv
        post_send post_recv);
    layout!(out, "ibv_pd", ibv_pd, whole, context handle);
    layout!(out, "ibv_mr", ibv_mr, whole, context pd addr length handle lkey rkey);
    layout!(out, "ibv_device_attr", ibv_device_attr, whole, fw_ver node_guid max_mr_size vendor_id
        max_qp max_qp_wr max_sge max_cqe max_qp_rd_atom max_qp_init_rd_atom atomic_cap max_srq
        max_srq_wr max_srq_sge max_pkeys local_ca_ack_delay phys_port_cnt);
    layout!(out, "ibv_port_attr", ibv_port_attr, whole, state max_mtu active_mtu gid_tbl_len
        port_cap_flags max_msg_sz lid link_layer flags port_cap_flags2);
    layout!(out, "ibv_async_event", ibv_async_event, whole, element event_type);
    layout!(out, "ibv_wc", ibv_wc, whole, wr_id status opcode vendor_err byte_len imm_data qp_num
        src_qp wc_flags pkey_index slid sl dlid_path_bits);
    layout!(out, "ibv_srq_attr", ibv_srq_attr, whole, max_wr max_sge srq_limit);
    layout!(out, "ibv_srq_init_attr", ibv_srq_init_attr, whole, srq_context attr);
    layout!(out, "ibv_qp_cap", ibv_qp_cap, whole, max_send_wr max_recv_wr max_send_sge max_recv_sge
        max_inline_data);
    layout!(out, "ibv_qp_init_attr", ibv_qp_init_attr, whole, qp_context send_cq recv_cq srq cap
        qp_type sq_sig_all);
    layout!(out, "ibv_ah_attr", ibv_ah_attr, whole,);
    layout!(out, "ibv_qp_attr", ibv_qp_attr, whole, qp_state cur_qp_state path_mtu path_mig_state
        qkey rq_psn sq_psn dest_qp_num qp_access_flags cap ah_attr alt_ah_attr pkey_index
        alt_pkey_index en_sqd_async_notify sq_draining max_rd_atomic max_dest_rd_atomic
        min_rnr_timer port_num timeout retry_cnt rnr_retry alt_port_num alt_timeout rate_limit);
    layout!(out, "ibv_sge", ibv_sge, whole, addr length lkey);
    layout!(out, "ibv_send_wr", ibv_send_wr, whole, wr_id next sg_list num_sge opcode send_flags
        imm_data);
    writeln!(
        out,
        "OFFSET(struct ibv_send_wr, wr.rdma.remote_addr, {});\n\
         OFFSET(struct ibv_send_wr, wr.rdma.rkey, {});",
        offset_of!(ibv_send_wr, remote_addr),
        offset_of!(ibv_send_wr, rkey)
    )
    .unwrap();
    layout!(out, "ibv_recv_wr", ibv_recv_wr, whole, wr_id next sg_list num_sge);
    layout!(out, "ibv_srq", ibv_srq, part, context);
    layout!(out, "ibv_qp", ibv_qp, part, context qp_context pd send_cq recv_cq srq handle qp_num);
    layout!(out, "ibv_comp_channel", ibv_comp_channel, whole, context fd refcnt);
    layout!(out, "ibv_cq", ibv_cq, whole, context channel cq_context handle cqe mutex cond
        comp_events_completed async_events_completed);
    layout!(out, "ibv_cq_ex", ibv_cq_ex, part, comp_mask status wr_id start_poll next_poll end_poll
        read_opcode read_vendor_err read_byte_len read_imm_data read_qp_num);
    layout!(out, "ibv_poll_cq_attr", ibv_poll_cq_attr, whole, comp_mask);
    layout!(out, "ibv_cq_init_attr_ex", ibv_cq_init_attr_ex, whole, cqe cq_context channel
        comp_vector wc_flags comp_mask flags parent_domain);
    layout!(out, "rdma_event_channel", rdma_event_channel, whole, fd);
    layout!(out, "rdma_addr", rdma_addr, whole, src_storage dst_storage);
    layout!(out, "rdma_route", rdma_route, whole, addr path_rec num_paths);
    layout!(out, "rdma_cm_id", rdma_cm_id, whole, verbs channel context qp route ps port_num event
        pd qp_type);
    layout!(out, "rdma_conn_param", rdma_conn_param, whole, private_data private_data_len
        responder_resources initiator_depth flow_control retry_count rnr_retry_count srq qp_num);
    layout!(out, "rdma_cm_event", rdma_cm_event, whole, id listen_id event status);
    writeln!(out, "OFFSET(struct rdma_cm_event, param.conn, {});", offset_of!(rdma_cm_event, conn))
        .unwrap();
    // The tail of verbs_context: distances from its end.
    for (field, offset) in [
        ("create_cq_ex", offset_of!(verbs_context, create_cq_ex)),
        ("sz", offset_of!(verbs_context, sz)),
        ("context", offset_of!(verbs_context, context)),
    ] {
        writeln!(
            out,
            "_Static_assert(sizeof(struct verbs_context) - offsetof(struct verbs_context, {field}) \
             == {}, \"verbs_context.{field}\");",
            size_of::<verbs_context>() - offset
        )
        .unwrap();
    }
    for (name, value) in VERBS_CONSTANTS.iter().chain(RDMA_CMA_CONSTANTS) {
        writeln!(out, "VALUE({name}, {value});").unwrap();
    }
    out
}

/// What the compiler says about `source`; `None` when it has nothing to say.
fn compile(source: &str) -> std::io::Result<Option<String>> {
    let mut compiler = Command::new("cc")
        .args(["-fsyntax-only", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(&mut compiler.stdin.take().unwrap(), source.as_bytes())?;
    let output = compiler.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((!output.status.success()).then_some(text))
}

#[test]
fn structures_and_constants_are_those_of_the_headers() {
    let headers = "#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n";
    if !matches!(compile(headers), Ok(None)) {
        println!("not compared: cc, libibverbs-dev or librdmacm-dev is not installed");
        return;
    }
    let complaints = compile(&source()).unwrap();
    assert!(complaints.is_none(), "{}", complaints.unwrap_or_default());
    // The comparison itself can fail.
    let wrong = format!("{}VALUE(IBV_QPT_RC, 3);\n", source());
    assert!(compile(&wrong).unwrap().is_some());
}
