//! `lunar` without an agent, and with a wrong command line: exit codes and words.

use std::process::Command;

fn lunar(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lunar"))
        .args(arguments)
        .env_remove("LUNAR_API")
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn an_agent_that_does_not_answer_is_exit_code_3_with_the_way_out() {
    let (code, text) = lunar(&["show", "--api", "/nonexistent/agent.sock"]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.starts_with("lunar: no agent answers at /nonexistent/agent.sock: "), "{text}");
    assert!(
        text.contains("No such file or directory") && text.contains("way out: start lunar-agent"),
        "{text}"
    );
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let (code, text) = lunar(&["show", "colours"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("targets, luns, nexuses, counters, latency"), "{text}");
}
