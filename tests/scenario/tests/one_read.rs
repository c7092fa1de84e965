//! The way of one READ, as docs/one-read.md tells it: the event trace is compared line by line, so
//! that page and code cannot part.

use lunar_initiator::Data;
use lunar_initiator::cdbs::{Transfer, read10};
use lunar_scenario::{Hardware, Lab, small_limits, submit_with};
use lunar_target::trace::Trace;

#[test]
fn one_read_of_4_kib_from_a_card_local_unit_takes_the_documented_steps() {
    let mut lab = Lab::new(Hardware::Prompt, 1, &small_limits());
    let mut initiator = lab.logged_in(1);
    // The login's last completions are not part of the story.
    lab.steps(10);
    lab.groups[0].set_trace(Some(Trace::new(64)));
    let before = lab.groups[0].counters().doorbells;
    let data = Data::In { offset: 0, bytes: 4096 };
    let tag = submit_with(&mut initiator, 0, &read10(Transfer::new(8, 8)), data);
    assert_eq!(lab.response(&mut initiator, tag).0, 0);
    lab.steps(4);
    let doorbells = lab.groups[0].counters().doorbells - before;
    let (records, lost) = lab.groups[0].trace_mut().expect("a trace").take();
    assert_eq!(lost, 0);
    let story: Vec<String> = records.iter().map(|record| format!("{:?}", record.point)).collect();
    let documented = include_str!("../../../docs/one-read.md");
    let (_, block) = documented.split_once("```trace\n").expect("a trace block");
    let (block, _) = block.split_once("```").expect("its end");
    let documented: Vec<&str> = block.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert_eq!(story, documented, "docs/one-read.md tells another story");
    assert_eq!(doorbells, 1, "one doorbell for RDMA WRITE and response together");
}
