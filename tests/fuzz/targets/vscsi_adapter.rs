//! Any sequence of entries, units, hypervisor results and configuration: the rig of the crate's own tests
//! insists on what actions may be, and at the end the adapter comes to rest and lets a client in again.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../../dpu-firmware/vscsi/tests/rig/mod.rs"]
mod rig;

/// Bytes of an SRP_LOGIN_REQ, the longest unit that has a meaning in all its bytes here.
const IU_BYTES: usize = 64;

fuzz_target!(|input: &[u8]| {
    let mut rig = rig::Rig::new();
    let mut rest = input;
    while let Some(([choice, argument], after)) = rest.split_first_chunk() {
        let mut used = 0;
        let mut take = |bytes: usize| {
            used = bytes.min(after.len());
            after[..used].to_vec()
        };
        if choice % 16 == 9 {
            let mut entry = take(16);
            entry.resize(16, 0);
            let entry = <[u8; 16]>::try_from(entry).expect("16 bytes");
            rig.step(*choice, *argument, |_| Vec::new(), |_| entry);
        } else if choice % 16 > 10 && !rig.fetching.is_empty() {
            let iu = take(IU_BYTES);
            rig.step(*choice, *argument, |_| iu, |_| [0; 16]);
        } else {
            rig.step(*choice, *argument, |_| Vec::new(), |_| [0; 16]);
        }
        rest = &after[used..];
    }
    rig.disable();
    rig.log_in(&rig::login_iu());
});
