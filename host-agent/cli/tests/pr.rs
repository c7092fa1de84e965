//! `lunar pr` against an agent with two devices and a card that does as it is told: words, JSON and exit codes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser as _;
use lunar_offload_proto::control::{
    self, Decoder, Encoder, ToCard, ToHost, feature, to_card, to_host,
};
use serde_json::Value;

/// How long anything may take; a test that needs it all has failed.
const PATIENCE: Duration = Duration::from_secs(30);

const CONFIGURATION: &str = "
HANDLER vdisk_nullio {
    DEVICE disk {
        size_mb 16
        lunar_backend host
    }
    DEVICE other {
        size_mb 16
        lunar_backend host
    }
    DEVICE fast {
        size_mb 16
    }
}
TARGET_DRIVER ib_srpt {
    TARGET t {
        LUN 0 disk
        LUN 1 other
        LUN 2 fast
        enabled 1
    }
}
";

/// Two registrants, the first of which holds.
const STATE: &str = "version 1
generation 7
reservation 05 00
registrant 1 fedcba9876543210 1 24 040000000000000011111111111111111111111111111111
registrant 1 00000000000000b2 0 24 040000000000000022222222222222222222222222222222
";

/// What a run came to: exit code, standard output, standard error.
type Ran = (i32, String, String);

struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    /// A keeper and an agent, which live as long as the test program. `kept`: what an earlier agent left, by its name.
    fn start(kept: &[(&str, &[u8])]) -> Self {
        let host = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(host.path("pr")).unwrap();
        for (name, bytes) in kept {
            fs::write(host.path("pr").join(name), bytes).unwrap();
        }
        fs::write(host.path("scst.conf"), CONFIGURATION).unwrap();
        let keeper = lunar_keeper::Options {
            socket: host.path("keeper"),
            arena_bytes: 1 << 20,
            groups: 1,
            ring_slots: 16,
            rdma: None,
            rdma_listen: None,
            exporter: false,
            exit_with_parent: false,
        };
        std::thread::spawn(move || lunar_keeper::run(&keeper));
        let mut arguments = vec!["lunar-agent".to_owned()];
        for (option, file) in [
            ("--config", "scst.conf"),
            ("--keeper", "keeper"),
            ("--control", "control"),
            ("--api", "api"),
            ("--pr-dir", "pr"),
        ] {
            arguments.extend([option.to_owned(), host.file(file)]);
        }
        let agent = lunar_agent::Options::parse_from(arguments);
        std::thread::spawn(move || lunar_agent::run(&agent).unwrap());
        let start = Instant::now();
        while !host.path("api").exists() {
            assert!(start.elapsed() < PATIENCE, "no agent");
            std::thread::sleep(Duration::from_millis(5));
        }
        host
    }

    /// With a card that brings every configuration in force at once.
    fn with_card(kept: &[(&str, &[u8])]) -> Self {
        let host = Self::start(kept);
        let stream = UnixStream::connect(host.path("control")).unwrap();
        let (met, meeting) = std::sync::mpsc::channel();
        std::thread::spawn(move || obey(stream, &met));
        meeting.recv_timeout(PATIENCE).expect("a configuration");
        host
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn file(&self, file: &str) -> String {
        self.path(file).to_str().unwrap().to_owned()
    }

    fn write(&self, file: &str, bytes: &[u8]) -> String {
        fs::write(self.path(file), bytes).unwrap();
        self.file(file)
    }

    fn pr(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_lunar"))
            .args(["--api", &self.file("api"), "pr"])
            .args(arguments)
            .env_remove("LUNAR_API")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Standard output of a run that ends well.
    fn good(&self, arguments: &[&str]) -> String {
        let (code, text, error) = self.pr(arguments);
        assert_eq!((code, error.as_str()), (0, ""), "{arguments:?}");
        text
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// What an agent that refuses says.
    fn refused(&self, arguments: &[&str]) -> String {
        let (code, text, error) = self.pr(arguments);
        assert_eq!((code, text.as_str()), (4, ""), "{arguments:?}: {error}");
        error
    }
}

/// The card's end of the control channel, until the agent closes it.
fn obey(mut stream: UnixStream, met: &std::sync::mpsc::Sender<()>) {
    let (mut decoder, mut encoder) = (Decoder::<ToCard>::new(), Encoder::new());
    let mut send = |stream: &mut UnixStream, message| {
        let message = ToHost { message: Some(message) };
        stream.write_all(&encoder.to_bytes(&message).unwrap())
    };
    let mut bytes = [0; 4096];
    loop {
        while let Some(ToCard { message }) = decoder.next_message().unwrap() {
            let sent = match message {
                Some(to_card::Message::Hello(hello)) => {
                    let limits = control::Limits::default();
                    let mine = control::hello("test card", 41, [7; 16], feature::ALL, 0, limits);
                    let agreed = control::negotiate(&mine, &hello).unwrap();
                    let accepted = control::HelloAccepted {
                        version: agreed.version,
                        features: agreed.features,
                        hello: Some(mine),
                    };
                    send(&mut stream, to_host::Message::HelloAccepted(accepted))
                }
                Some(to_card::Message::RingSetup(_)) => {
                    send(&mut stream, to_host::Message::RingsReady(control::RingsReady::default()))
                }
                Some(to_card::Message::Configuration(configuration)) => {
                    let generation = configuration.generation;
                    let applied = control::ConfigurationApplied { generation };
                    let _ = met.send(());
                    send(&mut stream, to_host::Message::ConfigurationApplied(applied))
                }
                // A sign of life for a sign of life.
                Some(to_card::Message::Heartbeat(_)) => {
                    send(&mut stream, to_host::Message::Heartbeat(control::Heartbeat::default()))
                }
                _ => Ok(()),
            };
            if sent.is_err() {
                return;
            }
        }
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(length) => decoder.push(&bytes[..length]),
        }
    }
}

#[test]
fn nothing_is_shown_as_nothing() {
    let host = Host::with_card(&[]);
    let text = host.good(&["show", "disk"]);
    let line =
        "Device disk: no persistent reservation; generation 0; does not outlive a loss of power";
    assert!(text.starts_with(line), "{text}");
    let shown = host.json(&["show", "disk"]);
    assert_eq!(shown["registrations"], Value::Array(Vec::new()));
    assert_eq!((&shown["reservation_type"], &shown["lost"]), (&Value::from(0), &false.into()));
    assert_eq!(host.good(&["export", "disk"]), "version 1\ngeneration 0\n");
}

#[test]
fn pr_state_is_imported_shown_exported_and_cleared() {
    let host = Host::with_card(&[]);
    let file = host.write("pr_state", STATE.as_bytes());
    let text = host.good(&["import", "disk", &file]);
    for words in [
        "Device disk: write exclusive, registrants only; generation 7; outlives a loss of power",
        "srp 0x11111111111111111111111111111111",
        "0xfedcba9876543210",
        "0x00000000000000b2",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("does not enforce"), "{text}");
    assert_eq!(host.good(&["show", "disk"]), text);
    let shown = host.json(&["show", "disk"]);
    assert_eq!(shown["reservation_type"], 5);
    assert_eq!((&shown["generation"], &shown["aptpl"]), (&Value::from(7), &true.into()));
    let first = &shown["registrations"][0];
    assert_eq!(first["key"].as_u64(), Some(0xfedc_ba98_7654_3210));
    assert_eq!(first["initiator"], "srp 0x11111111111111111111111111111111");
    assert_eq!((&first["relative_target_port"], &first["holder"]), (&1.into(), &true.into()));
    assert_eq!(shown["registrations"][1]["holder"], false);
    assert_eq!(shown.get("in_force"), None, "nothing is being changed");

    assert_eq!(host.good(&["export", "disk"]), STATE);
    assert_eq!(host.json(&["export", "disk"])["pr_state"], STATE);

    // What was exported is what is imported elsewhere.
    let exported = host.write("exported", host.good(&["export", "disk"]).as_bytes());
    let changed = host.json(&["import", "other", &exported]);
    assert_eq!((&changed["in_force"], &changed["pr_state"]), (&true.into(), &STATE.into()));
    assert_eq!(host.good(&["export", "other"]), STATE);

    let text = host.good(&["clear", "disk"]);
    assert!(text.starts_with("Device disk: no persistent reservation; generation 8"), "{text}");
    assert_eq!(host.json(&["clear", "disk"])["in_force"], true);
    assert_eq!(host.good(&["export", "other"]), STATE, "another device's");
}

/// SYSFS_ABI: `pr_file_name`, of a little-endian host.
#[test]
fn scsts_own_file_is_imported() {
    let mut bytes = 0xBBEE_EEAA_EEBB_DD77_u64.to_le_bytes().to_vec();
    bytes.extend(1_u64.to_le_bytes());
    // APTPL, reserved, Exclusive Access, the logical unit; then one registrant, the holder.
    bytes.extend([1, 1, 3, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0x33; 16]);
    bytes.extend(0x0123_4567_89AB_CDEF_u64.to_be_bytes());
    bytes.extend(1_u16.to_le_bytes());
    let host = Host::with_card(&[]);
    let file = host.write("scst", &bytes);
    let text = host.good(&["import", "disk", &file]);
    assert!(text.contains("exclusive access; generation 0; outlives"), "{text}");
    assert!(text.contains("0x0123456789abcdef"), "{text}");
    let id = format!("04{}{}", "00".repeat(7), "33".repeat(16));
    let expected = format!(
        "version 1\ngeneration 0\nreservation 03 00\nregistrant 1 0123456789abcdef 1 24 {id}\n"
    );
    assert_eq!(host.good(&["export", "disk"]), expected);
    // It ends in the middle of something.
    let cut = host.write("cut", &bytes[..bytes.len() - 1]);
    let error = host.refused(&["import", "other", &cut]);
    for words in [cut.as_str(), "device other", "SCST's file", "suffix .1"] {
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn what_is_no_reservations_is_refused_by_file_and_place_and_changes_nothing() {
    let host = Host::with_card(&[]);
    let file = host.write("pr_state", STATE.as_bytes());
    host.good(&["import", "disk", &file]);
    let line = STATE.replace("registrant 1 00000000000000b2", "registrant 1 x");
    let garbage: [(&str, &[u8], &str); 5] = [
        ("line", line.as_bytes(), "line 5"),
        ("binary", &[0xff, 0, 0x80, 7], "neither the text of SCST's pr_state"),
        ("empty", b"", "lunar pr clear"),
        ("script", b"#!/bin/sh\n", "line 1"),
        ("large", &vec![b'x'; 5 << 20], "5242880 bytes"),
    ];
    for (name, bytes, words) in garbage {
        let file = host.write(name, bytes);
        let error = host.refused(&["import", "disk", &file]);
        assert!(error.contains(&file) && error.contains(words), "{error}");
        assert_eq!(host.good(&["export", "disk"]), STATE);
    }
    let error = host.refused(&["import", "disk", &file.replace("pr_state", "nowhere")]);
    assert!(error.contains("nowhere: No such file or directory"), "{error}");
    assert!(!error.contains("agent"), "it was not asked: {error}");
    let error = host.refused(&["import", "disk", &host.file("pr")]);
    assert!(error.contains("pr: Is a directory"), "{error}");
}

#[test]
fn a_device_that_has_none_is_refused_with_those_that_have() {
    let host = Host::with_card(&[]);
    let file = host.write("pr_state", STATE.as_bytes());
    for device in ["nowhere", "fast"] {
        let commands: [&[&str]; 4] = [
            &["show", device],
            &["clear", device],
            &["export", device, "--json"],
            &["import", device, &file],
        ];
        for command in commands {
            let error = host.refused(command);
            let words = format!("device {device} is not one that this agent executes");
            assert_eq!(error.matches(&format!("device {device}")).count(), 1, "{error}");
            assert!(error.contains(&words) && error.contains("these are: disk, other"), "{error}");
        }
    }
    assert_eq!(host.pr(&["show"]).0, 2, "no device");
    assert_eq!(host.pr(&["import", "disk"]).0, 2, "no file");
}

#[test]
fn without_an_agent_every_command_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host { directory };
    let file = host.write("pr_state", STATE.as_bytes());
    let commands: [&[&str]; 4] =
        [&["show", "disk"], &["clear", "disk"], &["export", "disk"], &["import", "disk", &file]];
    for command in commands {
        let (code, text, error) = host.pr(command);
        assert_eq!((code, text.as_str()), (3, ""));
        assert!(error.contains("no agent answers") && error.contains("way out"), "{error}");
    }
}

#[test]
fn lost_reservations_are_shown_with_the_way_out() {
    let damaged = b"LUNARPR\0 and then nothing that makes sense".as_slice();
    let host = Host::with_card(&[("disk", damaged), ("disk.1", damaged)]);
    let text = host.good(&["show", "disk"]);
    for words in ["nobody gets at the device", "lunar pr import", "lunar pr clear"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(host.json(&["show", "disk"])["lost"], true);
    let error = host.refused(&["export", "disk"]);
    for words in ["device disk", "lost", "nothing to export", "lunar pr import", "lunar pr clear"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    host.refused(&["export", "disk", "--json"]);
    let text = host.good(&["clear", "disk"]);
    assert!(!text.contains("cannot be trusted"), "{text}");
    assert_eq!(host.json(&["show", "disk"])["lost"], false);
}

#[test]
fn without_a_card_a_change_is_kept_and_said_to_be_without_force() {
    let host = Host::start(&[]);
    let file = host.write("pr_state", STATE.as_bytes());
    let text = host.good(&["import", "disk", &file]);
    assert!(text.contains("The card does not enforce this yet"), "{text}");
    assert!(text.contains("0xfedcba9876543210"), "{text}");
    assert!(host.path("pr/disk").exists());
}

#[test]
fn a_change_that_cannot_be_kept_is_refused() {
    let host = Host::with_card(&[]);
    std::os::unix::fs::symlink("/dev/full", host.path("pr/disk.new")).unwrap();
    let file = host.write("pr_state", STATE.as_bytes());
    let error = host.refused(&["import", "disk", &file]);
    for words in ["device disk", &host.file("pr/disk"), "No space left on device", "--pr-dir"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert_eq!(host.good(&["export", "disk"]), "version 1\ngeneration 0\n");
}
