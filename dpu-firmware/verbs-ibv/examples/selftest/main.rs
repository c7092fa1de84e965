//! Tries the provider on an RDMA device, which may be rxe: listener and initiator in one process, and
//! host memory over a reliable connection. Exits with 1 when something is not as it must be.
//!
//! ```text
//! verbs-selftest rxe0 192.168.99.1
//! ```

mod host;
mod initiator;
mod target;

use std::net::Ipv4Addr;
use std::time::Instant;

use lunar_verbs_ibv::{Device, HcaName};

fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let parsed = (
        arguments.next().and_then(|name| name.parse::<HcaName>().ok()),
        arguments.next().and_then(|address| address.parse::<Ipv4Addr>().ok()),
    );
    let (Some(name), Some(address)) = parsed else {
        eprintln!("usage: verbs-selftest HCA[:PORT] ADDRESS [TEST]");
        std::process::exit(2);
    };
    let only = arguments.next();
    let device = match Device::open(&name) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    let tests = target::TESTS.iter().chain(host::TESTS);
    let mut failed = 0;
    for (name, test) in tests.filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        let start = Instant::now();
        match test(&device, address) {
            Ok(()) => println!("ok {name} ({} ms)", start.elapsed().as_millis()),
            Err(error) => {
                failed += 1;
                println!("FAILED {name}: {error:#}");
            }
        }
    }
    std::process::exit(i32::from(failed > 0));
}
