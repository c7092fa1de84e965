//! The two libraries, opened at the first use of RDMA and kept.
#![allow(unsafe_code)] // dlopen, and functions whose signatures only the headers know

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::sync::OnceLock;

use crate::rdma_cma::{rdma_cm_event, rdma_cm_id, rdma_conn_param, rdma_event_channel};
use crate::verbs::{
    _compat_ibv_port_attr, ibv_async_event, ibv_comp_channel, ibv_context, ibv_cq, ibv_device_attr,
    ibv_mr, ibv_pd, ibv_qp, ibv_qp_attr, ibv_qp_init_attr, ibv_srq, ibv_srq_init_attr,
};

/// Why RDMA cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What was looked for: a library, or a function in one.
    pub what: String,
    /// What the dynamic linker says.
    pub reason: String,
    /// The Debian package that brings it.
    pub package: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RDMA cannot be used: {} is missing ({}). Install it: apt-get install {} \
             ibverbs-providers",
            self.what, self.reason, self.package
        )
    }
}

impl std::error::Error for Missing {}

/// Declares the table of functions and how it is filled.
macro_rules! functions {
    ($($file:ident = $soname:literal from $package:literal {
        $($name:ident($($parameter:ident: $type:ty),*) $(-> $result:ty)?;)*
    })*) => {
        /// The functions of both libraries by their C names. They are C: what they demand of their
        /// callers is in their manual pages, `man 3 NAME`.
        #[derive(Debug)]
        #[allow(missing_docs)] // their manual pages have the same names
        pub struct Library {
            $($(pub $name: unsafe extern "C" fn($($parameter: $type),*) $(-> $result)?,)*)*
        }

        impl Library {
            fn load() -> Result<Self, Missing> {
                $(let $file = open($soname, $package)?;)*
                Ok(Self {
                    $($($name: {
                        let symbol = symbol($file, stringify!($name), $soname, $package)?;
                        // SAFETY: the library exports a function of that name and, by its symbol
                        // version, of that signature.
                        unsafe {
                            core::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($type),*) $(-> $result)?,
                            >(symbol)
                        }
                    },)*)*
                })
            }
        }
    };
}

functions! {
    verbs = "libibverbs.so.1" from "libibverbs1" {
        ibv_get_device_name(device: *mut c_void) -> *const c_char;
        ibv_query_device(context: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int;
        ibv_query_port(context: *mut ibv_context, port: u8, attr: *mut _compat_ibv_port_attr)
            -> c_int;
        ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int;
        ibv_ack_async_event(event: *mut ibv_async_event);
        ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd;
        ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int;
        ibv_reg_mr(pd: *mut ibv_pd, first: *mut c_void, bytes: usize, access: c_int)
            -> *mut ibv_mr;
        ibv_dereg_mr(mr: *mut ibv_mr) -> c_int;
        ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel;
        ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int;
        ibv_create_cq(
            context: *mut ibv_context,
            entries: c_int,
            cq_context: *mut c_void,
            channel: *mut ibv_comp_channel,
            vector: c_int
        ) -> *mut ibv_cq;
        ibv_destroy_cq(cq: *mut ibv_cq) -> c_int;
        ibv_get_cq_event(
            channel: *mut ibv_comp_channel,
            cq: *mut *mut ibv_cq,
            cq_context: *mut *mut c_void
        ) -> c_int;
        ibv_ack_cq_events(cq: *mut ibv_cq, count: c_uint);
        ibv_create_srq(pd: *mut ibv_pd, attr: *mut ibv_srq_init_attr) -> *mut ibv_srq;
        ibv_destroy_srq(srq: *mut ibv_srq) -> c_int;
        ibv_modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int;
    }
    cm = "librdmacm.so.1" from "librdmacm1" {
        rdma_get_devices(count: *mut c_int) -> *mut *mut ibv_context;
        rdma_free_devices(list: *mut *mut ibv_context);
        rdma_create_event_channel() -> *mut rdma_event_channel;
        rdma_destroy_event_channel(channel: *mut rdma_event_channel);
        rdma_create_id(
            channel: *mut rdma_event_channel,
            id: *mut *mut rdma_cm_id,
            context: *mut c_void,
            ps: c_uint
        ) -> c_int;
        rdma_destroy_id(id: *mut rdma_cm_id) -> c_int;
        rdma_bind_addr(id: *mut rdma_cm_id, address: *mut libc::sockaddr) -> c_int;
        rdma_listen(id: *mut rdma_cm_id, backlog: c_int) -> c_int;
        rdma_get_src_port(id: *mut rdma_cm_id) -> u16;
        rdma_set_option(
            id: *mut rdma_cm_id,
            level: c_int,
            name: c_int,
            value: *mut c_void,
            bytes: usize
        ) -> c_int;
        rdma_resolve_addr(
            id: *mut rdma_cm_id,
            source: *mut libc::sockaddr,
            destination: *mut libc::sockaddr,
            timeout_ms: c_int
        ) -> c_int;
        rdma_resolve_route(id: *mut rdma_cm_id, timeout_ms: c_int) -> c_int;
        rdma_connect(id: *mut rdma_cm_id, parameters: *mut rdma_conn_param) -> c_int;
        rdma_accept(id: *mut rdma_cm_id, parameters: *mut rdma_conn_param) -> c_int;
        rdma_reject(id: *mut rdma_cm_id, private_data: *const c_void, bytes: u8) -> c_int;
        rdma_disconnect(id: *mut rdma_cm_id) -> c_int;
        rdma_notify(id: *mut rdma_cm_id, event: c_uint) -> c_int;
        rdma_migrate_id(id: *mut rdma_cm_id, channel: *mut rdma_event_channel) -> c_int;
        rdma_get_cm_event(channel: *mut rdma_event_channel, event: *mut *mut rdma_cm_event)
            -> c_int;
        rdma_ack_cm_event(event: *mut rdma_cm_event) -> c_int;
        rdma_create_qp(id: *mut rdma_cm_id, pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> c_int;
        rdma_destroy_qp(id: *mut rdma_cm_id);
    }
}

impl Library {
    /// Both libraries; opened by the first call, never closed.
    ///
    /// # Errors
    /// What is not installed, and the package that brings it.
    pub fn get() -> Result<&'static Self, Missing> {
        static LIBRARY: OnceLock<Result<Library, Missing>> = OnceLock::new();
        LIBRARY.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }
}

fn linker_error() -> String {
    // SAFETY: dlerror gives null or a C string that stays until the thread's next dl call.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            return "no reason given".to_owned();
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

fn open(soname: &str, package: &'static str) -> Result<*mut c_void, Missing> {
    let missing = |reason| Missing { what: soname.to_owned(), reason, package };
    let name = std::ffi::CString::new(soname).map_err(|error| missing(error.to_string()))?;
    // SAFETY: the name is a C string; what the library runs when it is loaded is the system's.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() { Err(missing(linker_error())) } else { Ok(handle) }
}

fn symbol(
    library: *mut c_void,
    name: &str,
    soname: &str,
    package: &'static str,
) -> Result<*mut c_void, Missing> {
    let missing = |reason| Missing { what: format!("{name} in {soname}"), reason, package };
    let c_name = std::ffi::CString::new(name).map_err(|error| missing(error.to_string()))?;
    // SAFETY: the handle comes from dlopen and the name is a C string.
    let symbol = unsafe { libc::dlsym(library, c_name.as_ptr()) };
    if symbol.is_null() { Err(missing(linker_error())) } else { Ok(symbol) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_its_package() {
        let missing = open("liblunar-is-not-installed.so.1", "libibverbs1").unwrap_err();
        assert_eq!(missing.what, "liblunar-is-not-installed.so.1");
        let text = missing.to_string();
        assert!(text.contains("liblunar-is-not-installed.so.1"), "{text}");
        assert!(text.contains("apt-get install libibverbs1"), "{text}");
    }

    #[test]
    fn a_function_that_a_library_lacks_is_named() {
        let libc = open("libc.so.6", "libc6").unwrap();
        assert!(symbol(libc, "malloc", "libc.so.6", "libc6").is_ok());
        let missing = symbol(libc, "lunar_has_no_such", "libc.so.6", "libc6").unwrap_err();
        assert_eq!(missing.what, "lunar_has_no_such in libc.so.6");
    }
}
