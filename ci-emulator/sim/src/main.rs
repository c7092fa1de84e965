//! scaffold
fn main() {
    let mut arguments = std::env::args().skip(1);
    let seed = arguments.next().and_then(|a| a.parse().ok()).unwrap_or(1);
    let commands = arguments.next().and_then(|a| a.parse().ok()).unwrap_or(2000);
    let trace = arguments.next().is_some();
    let start = std::time::Instant::now();
    match lunar_sim::run(lunar_sim::Plan { seed, commands, trace }) {
        Ok(summary) => {
            println!("{:x} {} {} {} {:?}", summary.hash, summary.events, summary.commands, summary.now, summary.counts);
            println!("{}", summary.coverage);
        }
        Err(failure) => {
            for line in &failure.last { println!("{line}"); }
            println!("{} after {}", failure.broken, failure.commands);
        }
    }
    println!("{:?}", start.elapsed());
}
