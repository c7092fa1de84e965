//! What the harness is in the guest, under the name `verbs-selftest`: tests of the provider over libibverbs on
//! an RDMA device, with the listener and an initiator that knows nothing of it in one process, and host memory
//! over a reliable connection.
//!
//! ```text
//! verbs-selftest rxe0 192.168.99.1 [TEST]
//! ```

mod host;
mod target;

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use lunar_verbs_ibv::{Device, HcaName};

/// The name that the harness acts by.
pub const NAME: &str = "verbs-selftest";

/// `HCA[:PORT] ADDRESS [TEST]`: runs the tests, or the one that is named.
pub fn run(arguments: &[String]) -> Result<()> {
    let [name, address, only @ ..] = arguments else {
        bail!("usage: {NAME} HCA[:PORT] ADDRESS [TEST]");
    };
    let name = name.parse::<HcaName>().map_err(anyhow::Error::msg)?;
    let address = address.parse::<Ipv4Addr>()?;
    let device = Device::open(&name)?;
    let tests = target::TESTS.iter().chain(host::TESTS);
    let mut failed = 0;
    for (name, test) in tests.filter(|(name, _)| only.iter().all(|only| only == *name)) {
        let start = Instant::now();
        match test(&device, address) {
            Ok(()) => println!("ok {name} ({} ms)", start.elapsed().as_millis()),
            Err(error) => {
                failed += 1;
                println!("FAILED {name}: {error:#}");
            }
        }
    }
    ensure!(failed == 0, "{failed} tests failed");
    Ok(())
}
