//! Each behaviour of reliable connections that DESIGN section 6 names, in every mode, in one process.

mod rig;

use lunar_hca::{ConnectEvent, DeviceConfig, RemoteAccess};
use lunar_pcie::{ExportBlob, HostSlot, PlacementMode, Segment};
use lunar_platform::{
    ArenaId, CmError, CmEvent, CompletionStatus, Hca, Listener, LocalKey, Memory, PostError,
    QpHandle, QpParameters, ReceiveRequest, RemoteAddress, SendOperation, Sge, WorkCompletion,
    WorkRequestId,
};
use rig::{PARAMETERS, Rig, modes, read_from, write_to};

use CompletionStatus::{
    Fatal, Flushed, LocalLength, LocalProtection, RemoteAccess as RemoteAccessStatus,
    RemoteOperation, RetryExceeded, RnrRetryExceeded, Success,
};

/// Runs a behaviour in every mode.
fn in_every_mode(behaviour: impl Fn(Rig)) {
    for (name, config) in modes() {
        println!("mode: {name}");
        behaviour(Rig::new(config));
    }
}

#[test]
fn a_message_arrives_in_the_first_receive_buffer_and_both_ends_complete() {
    in_every_mode(|mut rig| {
        rig.target.receive(100, 0, 64);
        rig.initiator.fill(0, b"command");
        rig.initiator.send(rig.initiator_qp, 1, 0, 7);
        rig.until("both completions", |rig| {
            rig.target.ended(100).is_some() && rig.initiator.ended(1).is_some()
        });
        let received = rig.target.ended(100).unwrap();
        assert_eq!((received.status, received.length), (Success, 7));
        assert_eq!(received.qp, rig.target_qp);
        assert_eq!(rig.target.bytes(0, 8), b"command\0");
        assert_eq!(rig.initiator.ended(1).unwrap().qp, rig.initiator_qp);
    });
}

#[test]
fn nothing_starts_before_the_doorbell() {
    in_every_mode(|mut rig| {
        rig.target.receive(100, 0, 64);
        let key = rig.target.expose(4096, 4096, RemoteAccess::READ_WRITE);
        rig.initiator.fill(0, &[9; 16]);
        let chain = [
            rig.initiator.request(1, write_to(key, 0), 0, 16, true),
            rig.initiator.request(2, SendOperation::Send, 0, 16, true),
        ];
        rig.initiator.hca.post_send(rig.initiator_qp, &chain).unwrap();
        rig.rounds(50);
        assert!(rig.initiator.completions.is_empty() && rig.target.completions.is_empty());
        assert_eq!(rig.target.bytes(4096, 16), [0; 16]);
        let before = rig.initiator.hca.statistics().doorbells;
        rig.initiator.hca.ring(rig.initiator_qp);
        rig.initiator.hca.ring(rig.initiator_qp);
        assert_eq!(rig.initiator.hca.statistics().doorbells - before, 1, "the second was empty");
        rig.until("the chain ran", |rig| rig.initiator.ended(2).is_some());
    });
}

#[test]
fn written_data_is_there_when_the_later_send_is_received() {
    in_every_mode(|mut rig| {
        let key = rig.initiator.expose(0, 64 << 10, RemoteAccess::WRITE);
        for turn in 0..200u64 {
            let fill = turn as u8 | 1;
            rig.initiator.fill(0, &[0; 4096]);
            rig.target.fill(0, &[fill; 4096]);
            rig.initiator.receive(1000 + turn, 128 << 10, 64);
            let chain = [
                rig.target.request(0, write_to(key, 0), 0, 4096, false),
                rig.target.request(turn + 1, SendOperation::Send, 0, 36, true),
            ];
            rig.target.hca.post_send(rig.target_qp, &chain).unwrap();
            rig.target.hca.ring(rig.target_qp);
            rig.until("the response", |rig| rig.initiator.ended(1000 + turn).is_some());
            assert_eq!(rig.initiator.bytes(0, 4096), [fill; 4096]);
            rig.until("the completion", |rig| rig.target.ended(turn + 1).is_some());
        }
        let statistics = rig.target.hca.statistics();
        assert_eq!(statistics.doorbells, 200, "one a turn");
        assert_eq!(statistics.rdma_write_bytes, 200 * 4096);
    });
}

#[test]
fn completions_of_one_send_queue_keep_their_order() {
    in_every_mode(|mut rig| {
        let key = rig.initiator.expose(0, 64 << 10, RemoteAccess::READ_WRITE);
        for id in 0..5 {
            rig.initiator.receive(1000 + id, 128 << 10, 64);
        }
        let chain: Vec<_> = (0..15)
            .map(|id| {
                let operation = match id % 3 {
                    0 => SendOperation::Send,
                    1 => write_to(key, 0),
                    _ => read_from(key, 0),
                };
                rig.target.request(id, operation, 0, 32, true)
            })
            .collect();
        rig.target.hca.post_send(rig.target_qp, &chain).unwrap();
        rig.target.hca.ring(rig.target_qp);
        rig.until("all", |rig| rig.target.completions.len() == 15);
        let ids: Vec<u64> = rig.target.completions.iter().map(|c| c.id.0).collect();
        assert_eq!(ids, (0..15).collect::<Vec<_>>());
        assert!(rig.target.completions.iter().all(|c| c.status == Success));
    });
}

#[test]
fn a_read_fetches_what_was_there_before_a_later_write_of_the_same_queue_pair() {
    in_every_mode(|mut rig| {
        let key = rig.initiator.expose(0, 4096, RemoteAccess::READ_WRITE);
        rig.initiator.fill(0, b"old");
        rig.target.fill(0, b"...new");
        let chain = [
            rig.target.request(1, read_from(key, 0), 0, 3, true),
            rig.target.request(2, write_to(key, 0), 3, 3, true),
        ];
        rig.target.hca.post_send(rig.target_qp, &chain).unwrap();
        rig.target.hca.ring(rig.target_qp);
        rig.until("both", |rig| rig.target.ended(2).is_some());
        assert_eq!(rig.target.bytes(0, 3), b"old");
        assert_eq!(rig.initiator.bytes(0, 3), b"new");
    });
}

#[test]
fn deferred_reads_leave_the_local_buffer_alone_until_they_complete() {
    for (name, config) in modes().into_iter().skip(1) {
        println!("mode: {name}");
        let mut rig = Rig::new(config);
        let key = rig.initiator.expose(0, 4096, RemoteAccess::READ);
        rig.initiator.fill(0, b"data");
        let request = rig.target.request(1, read_from(key, 0), 0, 4, true);
        rig.target.hca.post_send(rig.target_qp, &[request]).unwrap();
        rig.target.hca.ring(rig.target_qp);
        while rig.target.ended(1).is_none() {
            assert_eq!(rig.target.bytes(0, 4), [0; 4]);
            rig.round();
        }
        assert_eq!(rig.target.bytes(0, 4), b"data");
    }
}

#[test]
fn more_reads_than_the_limit_wait_and_hold_up_what_follows() {
    in_every_mode(|mut rig| {
        let key = rig.initiator.expose(0, 4096, RemoteAccess::READ_WRITE);
        let mut chain: Vec<_> =
            (0..6).map(|id| rig.target.request(id, read_from(key, 0), 64 * id, 64, true)).collect();
        chain.push(rig.target.request(6, write_to(key, 1024), 0, 64, true));
        rig.target.hca.post_send(rig.target_qp, &chain).unwrap();
        rig.target.hca.ring(rig.target_qp);
        let mut most = 0;
        while rig.target.ended(6).is_none() {
            let statistics = rig.target.hca.statistics();
            most = most.max(statistics.rdma_reads - rig.target.completions.len() as u64);
            let reads_over = rig.target.completions.len() as u64;
            assert!(statistics.rdma_writes == 0 || reads_over >= 2, "it waits behind READ 5");
            rig.round();
        }
        assert!(most <= u64::from(PARAMETERS.rdma_reads), "{most}");
        assert!(rig.target.hca.statistics().read_limit_waits > 0);
    });
}

#[test]
fn unsignalled_requests_hold_their_room_until_a_later_signalled_one_is_reported() {
    in_every_mode(|mut rig| {
        let key = rig.initiator.expose(0, 4096, RemoteAccess::WRITE);
        let request =
            |rig: &Rig, id, signaled| rig.target.request(id, write_to(key, 0), 0, 64, signaled);
        let qp = rig.target_qp;
        let chain: Vec<_> = (0..15).map(|id| request(&rig, id, false)).collect();
        rig.target.hca.post_send(qp, &chain).unwrap();
        rig.target.hca.ring(qp);
        rig.rounds(500);
        assert!(rig.target.completions.is_empty());
        // 16 deep: one place is left, and a chain of two is refused as a whole.
        let two = [request(&rig, 15, true), request(&rig, 16, true)];
        assert_eq!(rig.target.hca.post_send(qp, &two), Err(PostError::Full));
        assert_eq!(rig.target.hca.post_send(qp, &two[..1]), Ok(()));
        assert_eq!(rig.target.hca.post_send(qp, &two[1..]), Err(PostError::Full));
        assert_eq!(rig.target.hca.statistics().posts_full, 2);
        rig.target.hca.ring(qp);
        rig.until("the signalled one", |rig| rig.target.ended(15).is_some());
        assert_eq!(rig.target.completions.len(), 1, "successes of the others are not reported");
        let all: Vec<_> = (20..36).map(|id| request(&rig, id, true)).collect();
        assert_eq!(rig.target.hca.post_send(qp, &all), Ok(()), "all room is back");
    });
}

#[test]
fn receives_may_overtake_the_send_completion_that_frees_a_slot() {
    // Under some seed the client's next command is seen before the completion of the response that
    // made the client send it.
    let overtaken = (0..50).any(|seed| {
        let config = |name: &str| {
            DeviceConfig::new(name).deferring(lunar_hca::Latency { minimum: 1, spread: 9 }, seed)
        };
        let mut rig = Rig::with(config("card"), config("client"), PARAMETERS);
        rig.initiator.receive(1000, 0, 64);
        rig.target.receive(2000, 0, 64);
        rig.target.send(rig.target_qp, 1, 0, 8);
        rig.until("the response", |rig| rig.initiator.ended(1000).is_some());
        rig.initiator.send(rig.initiator_qp, 2, 0, 8);
        rig.until("both", |rig| rig.target.ended(1).is_some() && rig.target.ended(2000).is_some());
        rig.target.completions.first().unwrap().id.0 == 2000
    });
    assert!(overtaken);
}

#[test]
fn a_stream_of_receives_does_not_starve_send_completions() {
    in_every_mode(|mut rig| {
        // Every round brings more messages than a poll reports; answers must complete all the same.
        for id in 0..8 {
            rig.initiator.receive(id, 0, 64);
        }
        for id in 0..100 {
            rig.target.receive(10_000 + id, 0, 64);
        }
        for id in 0..8 {
            rig.target.send(rig.target_qp, id, 0, 8);
        }
        let mut sent = 0;
        while rig.target.completions.iter().filter(|c| c.id.0 < 8).count() < 8 {
            for _ in 0..10 {
                let request = rig.initiator.request(sent, SendOperation::Send, 0, 8, true);
                if rig.initiator.hca.post_send(rig.initiator_qp, &[request]).is_ok() {
                    rig.target.receive(20_000 + sent, 0, 64);
                    sent += 1;
                }
            }
            rig.initiator.hca.ring(rig.initiator_qp);
            assert!(sent < 2000, "starved");
            rig.round();
        }
    });
}

#[test]
fn without_a_receive_buffer_a_message_waits_and_is_counted() {
    in_every_mode(|mut rig| {
        rig.initiator.send(rig.initiator_qp, 1, 0, 8);
        rig.initiator.send(rig.initiator_qp, 2, 0, 8);
        rig.rounds(200);
        assert!(rig.initiator.completions.is_empty());
        assert!(rig.target.hca.statistics().receiver_not_ready > 100);
        rig.target.receive(100, 0, 64);
        rig.until("the first", |rig| rig.initiator.ended(1).is_some());
        rig.rounds(50);
        assert!(rig.initiator.ended(2).is_none());
        rig.target.receive(101, 0, 64);
        rig.until("the second", |rig| rig.initiator.ended(2).is_some());
    });
}

#[test]
fn with_limited_retries_a_message_without_a_buffer_fails() {
    for (name, config) in modes() {
        println!("mode: {name}");
        let mut client = config("client");
        client.rnr_retry = Some(3);
        let mut rig = Rig::with(config("card"), client, PARAMETERS);
        rig.target.receive(100, 0, 64);
        for id in 1..4 {
            rig.initiator.send(rig.initiator_qp, id, 0, 8);
        }
        rig.until("the failure", |rig| rig.initiator.completions.len() == 3);
        assert_eq!(rig.initiator.ended(1).unwrap().status, Success);
        assert_eq!(rig.initiator.ended(2).unwrap().status, RnrRetryExceeded);
        assert_eq!(rig.initiator.ended(3).unwrap().status, Flushed);
        let naks = rig.target.hca.statistics().receiver_not_ready;
        assert!(naks >= 4, "the first try and three more: {naks}");
    }
}

#[test]
fn a_short_receive_buffer_ends_both_queue_pairs() {
    in_every_mode(|mut rig| {
        rig.target.receive(100, 0, 64);
        rig.target.receive(101, 64, 16);
        rig.initiator.send(rig.initiator_qp, 1, 0, 64);
        rig.initiator.send(rig.initiator_qp, 2, 0, 17);
        rig.initiator.send(rig.initiator_qp, 3, 0, 8);
        rig.until("the failure", |rig| rig.initiator.completions.len() == 3);
        rig.until("the receiver's", |rig| rig.target.completions.len() == 2);
        assert_eq!(rig.target.ended(100).unwrap().status, Success);
        assert_eq!(rig.target.ended(101).unwrap().status, LocalLength);
        assert_eq!(rig.initiator.ended(1).unwrap().status, Success);
        assert_eq!(rig.initiator.ended(2).unwrap().status, RemoteOperation);
        assert_eq!(rig.initiator.ended(3).unwrap().status, Flushed);
        // The receiver's queue pair is in the error state: it takes and flushes.
        rig.target.send(rig.target_qp, 5, 0, 8);
        rig.until("the flush", |rig| rig.target.ended(5).is_some());
        assert_eq!(rig.target.ended(5).unwrap().status, Flushed);
    });
}

/// The status that `operation` on `local` ends with, and the rig afterwards.
fn status_of(rig: &mut Rig, operation: SendOperation, local: Sge) -> CompletionStatus {
    let request = lunar_platform::SendRequest {
        id: WorkRequestId(1),
        operation,
        local,
        signaled: false, // failures are always reported
    };
    let after = rig.target.request(2, SendOperation::Send, 0, 8, false);
    rig.target.hca.post_send(rig.target_qp, &[request, after]).unwrap();
    rig.target.hca.ring(rig.target_qp);
    rig.until("both", |rig| rig.target.completions.len() == 2);
    assert_eq!(rig.target.completions[0].id.0, 1);
    assert_eq!(rig.target.completions[1].id.0, 2);
    assert_eq!(rig.target.completions[1].status, Flushed, "the queue pair is in the error state");
    rig.target.completions[0].status
}

#[test]
fn a_bad_local_key_or_range_is_a_local_protection_error() {
    in_every_mode(|mut rig| {
        let local = Sge { key: LocalKey(0x7777), ..rig.target.sge(0, 64) };
        assert_eq!(status_of(&mut rig, SendOperation::Send, local), LocalProtection);
        assert_eq!(rig.target.hca.statistics().local_protection_errors, 1);
    });
    in_every_mode(|mut rig| {
        let key = rig.initiator.expose(0, 4096, RemoteAccess::READ_WRITE);
        let local = rig.target.sge(rig::MEMORY_BYTES as u64 - 63, 64);
        assert_eq!(status_of(&mut rig, read_from(key, 0), local), LocalProtection);
        // The peer did nothing wrong.
        assert!(rig.initiator.events.is_empty());
    });
}

#[test]
fn a_bad_remote_key_range_or_right_is_a_remote_access_error_and_ends_the_peers_queue_pair() {
    type Case = (&'static str, RemoteAccess, fn(lunar_hca::RemoteKey) -> SendOperation);
    let cases: [Case; 6] = [
        ("a write without the right", RemoteAccess::READ, |key| write_to(key, 0)),
        ("a read without the right", RemoteAccess::WRITE, |key| read_from(key, 0)),
        ("one byte too far", RemoteAccess::READ_WRITE, |key| write_to(key, 4096 - 63)),
        ("one byte too early", RemoteAccess::READ_WRITE, |key| {
            let address = key.base - 1;
            SendOperation::RdmaRead(RemoteAddress { address, key: key.rkey })
        }),
        ("an unknown key", RemoteAccess::READ_WRITE, |key| {
            let key = lunar_hca::RemoteKey { rkey: key.rkey + 1, ..key };
            write_to(key, 0)
        }),
        ("a key of another generation", RemoteAccess::READ_WRITE, |key| {
            let key = lunar_hca::RemoteKey { rkey: key.rkey ^ 0x10000, ..key };
            write_to(key, 0)
        }),
    ];
    for (what, access, operation) in cases {
        in_every_mode(|mut rig| {
            println!("{what}");
            let key = rig.initiator.expose(0, 4096, access);
            let local = rig.target.sge(0, 64);
            assert_eq!(status_of(&mut rig, operation(key), local), RemoteAccessStatus);
            let fatal = CmEvent::QpFatal(rig.initiator_qp);
            rig.until("the peer's event", |rig| rig.initiator.events.contains(&fatal));
            assert_eq!(rig.initiator.bytes(0, 4096), [0; 4096]);
        });
    }
}

#[test]
fn an_invalidated_key_counts_no_more_and_its_successor_does() {
    in_every_mode(|mut rig| {
        let old = rig.initiator.expose(0, 4096, RemoteAccess::READ_WRITE);
        assert!(rig.initiator.hca.invalidate(old.rkey));
        assert!(!rig.initiator.hca.invalidate(old.rkey));
        let new = rig.initiator.expose(0, 4096, RemoteAccess::READ_WRITE);
        assert_ne!(old.rkey, new.rkey);
        rig.target.fill(0, b"x");
        let good = rig.target.request(9, write_to(new, 0), 0, 1, true);
        rig.target.hca.post_send(rig.target_qp, &[good]).unwrap();
        rig.target.hca.ring(rig.target_qp);
        rig.until("the good one", |rig| rig.target.ended(9).is_some());
        rig.target.completions.clear();
        let local = rig.target.sge(1, 1);
        assert_eq!(status_of(&mut rig, write_to(old, 0), local), RemoteAccessStatus);
        assert_eq!(rig.initiator.bytes(0, 2), b"x\0");
    });
}

#[test]
fn memory_that_was_given_back_or_revoked_is_a_local_protection_error() {
    in_every_mode(|mut rig| {
        let region = rig.target.memory.claim(4096).unwrap();
        let local = Sge {
            address: lunar_platform::Region::base(&region),
            length: 64,
            key: lunar_platform::Region::key(&region),
        };
        drop(region);
        assert_eq!(status_of(&mut rig, SendOperation::Send, local), LocalProtection);
    });
    for withheld in [false, true] {
        for (name, config) in modes() {
            println!("mode: {name}, withheld {withheld}");
            let mut rig = Rig::new(config);
            let mode =
                if withheld { PlacementMode::Withheld { seed: 3 } } else { PlacementMode::Prompt };
            let slot = HostSlot::new(mode);
            let blob = ExportBlob { arena: ArenaId(7), secret: [9; 16] };
            let segment = Segment::anonymous(1 << 16).unwrap();
            slot.plug(blob, &segment);
            let space = lunar_pcie::AddressSpace::new();
            let mut memory = lunar_pcie::CardMemory::new(
                space.clone(),
                Some(slot.clone()),
                lunar_pcie::Backing::Anonymous,
                0,
            );
            let arena = memory.import(&blob.encode()).unwrap();
            let mut card = rig.target.device.group(rig::attributes(), space).unwrap();
            std::mem::swap(&mut rig.target.hca, &mut card);
            let (target_qp, _) = rig.connect(PARAMETERS);
            rig.target_qp = target_qp;
            let key = rig.initiator.expose(0, 4096, RemoteAccess::READ_WRITE);
            rig.initiator.fill(0, b"data-out");
            let local = Sge { address: arena.base, length: 8, key: arena.key.unwrap() };
            let request = lunar_platform::SendRequest {
                id: WorkRequestId(5),
                operation: read_from(key, 0),
                local,
                signaled: true,
            };
            rig.target.hca.post_send(target_qp, &[request]).unwrap();
            rig.target.hca.ring(target_qp);
            rig.until("the READ", |rig| rig.target.ended(5).is_some());
            let mut placed = [0; 8];
            segment.read(0, &mut placed);
            assert_eq!(&placed, if withheld { &[0; 8] } else { b"data-out" });
            // An HCA read of the arena sees the HCA's own writes, withheld or not.
            let back = lunar_platform::SendRequest {
                id: WorkRequestId(6),
                operation: write_to(key, 64),
                ..request
            };
            rig.target.hca.post_send(target_qp, &[back]).unwrap();
            rig.target.hca.ring(target_qp);
            rig.until("the WRITE", |rig| rig.target.ended(6).is_some());
            assert_eq!(rig.initiator.bytes(64, 8), b"data-out");
            rig.target.completions.clear();
            slot.revoke(ArenaId(7));
            assert_eq!(status_of(&mut rig, read_from(key, 0), local), LocalProtection);
        }
    }
}

#[test]
fn a_revoked_receive_buffer_fails_both_ends_and_no_other_connection() {
    in_every_mode(|mut rig| {
        let (other_target, other_initiator) = rig.connect(PARAMETERS);
        let region = rig.target.memory.claim(4096).unwrap();
        let local = Sge {
            address: lunar_platform::Region::base(&region),
            length: 64,
            key: lunar_platform::Region::key(&region),
        };
        rig.target.hca.post_receive(ReceiveRequest { id: WorkRequestId(100), local }).unwrap();
        drop(region);
        rig.target.receive(101, 0, 64);
        rig.initiator.send(rig.initiator_qp, 1, 0, 8);
        rig.until("the failure", |rig| rig.initiator.ended(1).is_some());
        rig.until("the receiver's", |rig| rig.target.ended(100).is_some());
        assert_eq!(rig.target.ended(100).unwrap().status, LocalProtection);
        assert_eq!(rig.initiator.ended(1).unwrap().status, RemoteOperation);
        rig.initiator.send(other_initiator, 2, 0, 8);
        rig.until("the other connection", |rig| rig.target.ended(101).is_some());
        assert_eq!(rig.target.ended(101).unwrap().qp, other_target);
    });
}

#[test]
fn malformed_posts_are_refused_at_once() {
    in_every_mode(|mut rig| {
        let key = rig.initiator.expose(0, 4096, RemoteAccess::READ_WRITE);
        let qp = rig.target_qp;
        let long = rig.target.request(1, write_to(key, 0), 0, (1 << 20) + 1, true);
        assert_eq!(rig.target.hca.post_send(qp, &[long]), Err(PostError::Invalid));
        let long = rig.target.request(1, SendOperation::Send, 0, (32 << 10) + 1, true);
        let good = rig.target.request(2, SendOperation::Send, 0, 8, true);
        assert_eq!(rig.target.hca.post_send(qp, &[good, long]), Err(PostError::Invalid));
        assert_eq!(rig.target.hca.statistics().send_requests, 0, "all or nothing");
        let local = rig.target.sge(0, (1 << 20) + 1);
        let receive = ReceiveRequest { id: WorkRequestId(1), local };
        assert_eq!(rig.target.hca.post_receive(receive), Err(PostError::Invalid));
        for id in 0..256 {
            rig.target.receive(id, 0, 64);
        }
        let receive = ReceiveRequest { id: WorkRequestId(1), local: rig.target.sge(0, 64) };
        assert_eq!(rig.target.hca.post_receive(receive), Err(PostError::Full));
    });
}

#[test]
fn messages_of_every_length_survive_the_wrap_of_the_ring() {
    in_every_mode(|mut rig| {
        let lengths = [0u32, 1, 55, 56, 57, 64, 119, 120, 121, 4096, 8192, 32_760];
        for turn in 0..60u64 {
            let length = lengths[turn as usize % lengths.len()];
            let pattern: Vec<u8> =
                (0..length as usize).map(|at| (at * 7 + turn as usize) as u8).collect();
            rig.initiator.fill(0, &pattern);
            rig.target.receive(1000 + turn, 0, 32_760);
            rig.initiator.send(rig.initiator_qp, turn, 0, length);
            rig.until("the message", |rig| {
                rig.target.ended(1000 + turn).is_some() && rig.initiator.ended(turn).is_some()
            });
            assert_eq!(rig.target.ended(1000 + turn).unwrap().length, length);
            assert_eq!(rig.target.bytes(0, length as usize), pattern);
        }
    });
}

#[test]
fn work_that_the_ring_has_no_room_for_waits() {
    in_every_mode(|mut rig| {
        for id in 0..10 {
            rig.initiator.send(rig.initiator_qp, id, 0, 16 << 10);
        }
        rig.rounds(100);
        assert!(rig.initiator.hca.statistics().sends < 10);
        for id in 0..10 {
            rig.target.receive(100 + id, 0, 16 << 10);
        }
        rig.until("all", |rig| rig.initiator.completions.len() == 10);
        assert!(rig.initiator.completions.iter().all(|c| c.status == Success));
    });
}

#[test]
fn disconnect_flushes_then_reports_disconnected_then_drained_at_both_ends() {
    in_every_mode(|mut rig| {
        let key = rig.initiator.expose(0, 4096, RemoteAccess::READ_WRITE);
        let qp = rig.target_qp;
        // Not rung, not signalled: flushed and reported nevertheless.
        let chain: Vec<_> =
            (0..3).map(|id| rig.target.request(id, write_to(key, 0), 0, 64, false)).collect();
        rig.target.hca.post_send(qp, &chain).unwrap();
        rig.target.hca.disconnect(qp);
        rig.target.hca.disconnect(qp);
        rig.until("drained", |rig| rig.target.events.contains(&CmEvent::Drained(qp)));
        assert_eq!(rig.target.events, [CmEvent::Disconnected(qp), CmEvent::Drained(qp)]);
        assert_eq!(rig.target.completions.len(), 3);
        assert!(rig.target.completions.iter().all(|c| c.status == Flushed));
        assert_eq!(rig.target.hca.statistics().flushes, 3);
        let peer = rig.initiator_qp;
        rig.until("the peer", |rig| rig.initiator.events.contains(&CmEvent::Drained(peer)));
        assert_eq!(rig.initiator.events, [CmEvent::Disconnected(peer), CmEvent::Drained(peer)]);
        assert_eq!(rig.initiator.bytes(0, 64), [0; 64]);
    });
}

#[test]
fn drained_waits_for_the_last_flushed_completion() {
    in_every_mode(|mut rig| {
        let qp = rig.target_qp;
        rig.target.hca.disconnect(qp);
        let request = rig.target.request(1, SendOperation::Send, 0, 8, true);
        rig.target.hca.post_send(qp, &[request]).unwrap();
        for _ in 0..100 {
            rig.now += 100_000;
            rig.target.device.advance(lunar_platform::Nanoseconds(rig.now));
            // No room for completions: time passes, nothing is reported.
            rig.target.hca.poll(&mut []);
            while let Some(event) = rig.target.hca.poll_cm() {
                rig.target.events.push(event);
            }
        }
        assert_eq!(rig.target.events, [CmEvent::Disconnected(qp)]);
        rig.until("drained", |rig| rig.target.events.contains(&CmEvent::Drained(qp)));
        assert_eq!(rig.target.ended(1).unwrap().status, Flushed);
        let request = rig.target.request(2, SendOperation::Send, 0, 8, true);
        let after = rig.target.hca.post_send(qp, &[request]);
        assert_eq!(after, Err(PostError::NotConnected), "nothing comes after Drained");
    });
}

#[test]
fn what_was_sent_before_a_disconnect_is_received() {
    in_every_mode(|mut rig| {
        rig.target.receive(100, 0, 64);
        rig.initiator.send(rig.initiator_qp, 1, 0, 8);
        rig.until("on the wire", |rig| rig.initiator.hca.statistics().sends == 1);
        rig.initiator.hca.disconnect(rig.initiator_qp);
        let gone = CmEvent::Drained(rig.target_qp);
        rig.until("the end", |rig| rig.target.events.contains(&gone));
        assert_eq!(rig.target.ended(100).unwrap().status, Success);
    });
}

#[test]
fn a_stale_handle_reaches_nothing() {
    in_every_mode(|mut rig| {
        let stale = rig.target_qp;
        rig.target.hca.disconnect(stale);
        rig.until("drained", |rig| rig.target.events.contains(&CmEvent::Drained(stale)));
        rig.target.hca.destroy(stale);
        let (fresh, peer) = rig.connect(PARAMETERS);
        assert_eq!(fresh.index, stale.index, "the index is used again");
        assert_ne!(fresh, stale);
        let request = rig.target.request(1, SendOperation::Send, 0, 8, true);
        let posted = rig.target.hca.post_send(stale, &[request]);
        assert_eq!(posted, Err(PostError::NotConnected));
        rig.target.hca.ring(stale);
        rig.target.hca.disconnect(stale);
        rig.target.hca.destroy(stale);
        assert_eq!(rig.target.hca.statistics().stale_handles, 4);
        rig.initiator.receive(100, 0, 64);
        rig.target.send(fresh, 2, 0, 8);
        rig.until("the fresh one works", |rig| rig.initiator.ended(100).is_some());
        assert_eq!(rig.initiator.ended(100).unwrap().qp, peer);
    });
}

#[test]
fn a_peer_that_vanishes_disconnects() {
    in_every_mode(|mut rig| {
        let qp = rig.target_qp;
        rig.target.send(qp, 1, 0, 8);
        rig.initiator.hca.sever(rig.initiator_qp);
        rig.until("drained", |rig| rig.target.events.contains(&CmEvent::Drained(qp)));
        assert_eq!(rig.target.events, [CmEvent::Disconnected(qp), CmEvent::Drained(qp)]);
        assert!(matches!(rig.target.ended(1).unwrap().status, Flushed | RetryExceeded));
        let own = CmEvent::Disconnected(rig.initiator_qp);
        rig.until("the severed end", |rig| rig.initiator.events.contains(&own));
    });
    // The whole group goes, as when its process dies.
    in_every_mode(|mut rig| {
        let device = rig.initiator.device.clone();
        let space = lunar_pcie::AddressSpace::new();
        rig.initiator.hca = device.group(rig::attributes(), space).unwrap();
        let gone = CmEvent::Disconnected(rig.target_qp);
        rig.until("gone", |rig| rig.target.events.contains(&gone));
    });
}

#[test]
fn a_silent_peer_exceeds_the_retries() {
    in_every_mode(|mut rig| {
        rig.target.send(rig.target_qp, 1, 0, 8);
        rig.until("on the wire", |rig| rig.target.hca.statistics().sends == 1);
        rig.target.hca.silence(rig.target_qp);
        rig.initiator.receive(100, 0, 64);
        rig.until("the failure", |rig| rig.target.ended(1).is_some());
        assert_eq!(rig.target.ended(1).unwrap().status, RetryExceeded);
    });
}

#[test]
fn a_queue_pair_that_fails_on_its_own_is_reported() {
    in_every_mode(|mut rig| {
        rig.target.hca.fail_queue_pair(rig.target_qp);
        let fatal = CmEvent::QpFatal(rig.target_qp);
        rig.until("the event", |rig| rig.target.events.contains(&fatal));
        // The peer finds out when it sends.
        rig.initiator.send(rig.initiator_qp, 1, 0, 8);
        rig.until("the peer's failure", |rig| rig.initiator.ended(1).is_some());
        assert_eq!(rig.initiator.ended(1).unwrap().status, RetryExceeded);
        rig.target.hca.disconnect(rig.target_qp);
        let drained = CmEvent::Drained(rig.target_qp);
        rig.until("the end", |rig| rig.target.events.contains(&drained));
    });
}

#[test]
fn while_the_port_is_down_work_waits() {
    in_every_mode(|mut rig| {
        rig.initiator.receive(100, 0, 64);
        rig.target.receive(200, 0, 64);
        rig.target.device.port_down();
        rig.until("the event", |rig| rig.target.events.contains(&CmEvent::PortDown));
        rig.target.send(rig.target_qp, 1, 0, 8);
        rig.initiator.send(rig.initiator_qp, 2, 0, 8);
        rig.initiator.hca.connect(&rig.fabric, "srp", PARAMETERS, b"login");
        rig.rounds(200);
        assert!(rig.target.completions.is_empty() && rig.initiator.completions.is_empty());
        assert!(rig.listener.poll().is_none());
        rig.target.device.port_up();
        rig.until("both ways", |rig| {
            rig.target.completions.len() == 2 && rig.initiator.completions.len() == 2
        });
        assert_eq!(rig.target.events, [CmEvent::PortDown, CmEvent::PortUp]);
    });
}

#[test]
fn a_dead_device_ends_everything() {
    in_every_mode(|mut rig| {
        let (qp, peer) = (rig.target_qp, rig.initiator_qp);
        rig.target.send(qp, 1, 0, 8);
        rig.target.device.fatal();
        rig.until("the event", |rig| rig.target.events.contains(&CmEvent::DeviceFatal));
        rig.until("the completion", |rig| rig.target.ended(1).is_some());
        assert_eq!(rig.target.ended(1).unwrap().status, Fatal);
        rig.until("the peer", |rig| rig.initiator.events.contains(&CmEvent::Disconnected(peer)));
        rig.target.hca.disconnect(qp);
        rig.until("the end", |rig| rig.target.events.contains(&CmEvent::Drained(qp)));
        rig.initiator.hca.connect(&rig.fabric, "srp", PARAMETERS, b"login");
        rig.rounds(50);
        assert!(rig.listener.poll().is_none());
    });
}

#[test]
fn requests_can_be_rejected_dropped_and_unanswered() {
    for (name, config) in modes() {
        println!("mode: {name}");
        let mut rig = Rig::unconnected(config("card"), config("client"));
        let connect = |rig: &mut Rig, service: &str, parameters| {
            rig.initiator.hca.connect(&rig.fabric.clone(), service, parameters, b"login")
        };
        let rejected = connect(&mut rig, "srp", PARAMETERS);
        let dropped = connect(&mut rig, "srp", PARAMETERS);
        let refused = connect(&mut rig, "srp", PARAMETERS);
        let absent = connect(&mut rig, "no such service", PARAMETERS);
        let deep = QpParameters { send_queue_depth: 0, rdma_reads: 0 };
        let invalid = connect(&mut rig, "srp", deep);
        let request = rig.listener.poll().unwrap();
        assert_eq!(request.peer.as_str(), "client");
        rig.listener.reject(request.connection, b"reason");
        drop(rig.listener.poll().unwrap());
        let request = rig.listener.poll().unwrap();
        let deep = QpParameters { send_queue_depth: 257, rdma_reads: 0 };
        let accepted = rig.target.hca.accept(request.connection, deep, b"");
        assert_eq!(accepted, Err(CmError::Invalid));
        rig.until("all answers", |rig| rig.initiator.answers.len() == 5);
        for answer in &rig.initiator.answers {
            match answer {
                ConnectEvent::Rejected { id, private_data } if *id == rejected => {
                    assert_eq!(private_data.as_bytes(), b"reason");
                }
                ConnectEvent::Rejected { id, private_data } => {
                    assert!([dropped, refused].contains(id));
                    assert_eq!(private_data.as_bytes(), b"");
                }
                ConnectEvent::Failed { id } => assert!([absent, invalid].contains(id)),
                ConnectEvent::Accepted { .. } => panic!("{answer:?}"),
            }
        }
        assert!(rig.initiator.hca.statistics().stale_handles == 0);
    }
}

#[test]
fn a_request_whose_sender_is_gone_cannot_be_accepted() {
    in_every_mode(|mut rig| {
        rig.initiator.hca.connect(&rig.fabric, "srp", PARAMETERS, b"login");
        let request = rig.listener.poll().unwrap();
        let device = rig.initiator.device.clone();
        let space = lunar_pcie::AddressSpace::new();
        rig.initiator.hca = device.group(rig::attributes(), space).unwrap();
        let accepted = rig.target.hca.accept(request.connection, PARAMETERS, b"");
        assert_eq!(accepted, Err(CmError::Gone));
    });
}

#[test]
fn the_first_message_stands_for_the_ready_to_use() {
    // The RTU is not looked at before the message, because the group polls completions first.
    let mut rig = Rig::unconnected(DeviceConfig::new("card"), DeviceConfig::new("client"));
    rig.initiator.hca.connect(&rig.fabric, "srp", PARAMETERS, b"login");
    let request = rig.listener.poll().unwrap();
    let qp = rig.target.hca.accept(request.connection, PARAMETERS, b"").unwrap();
    let early = rig.target.request(1, SendOperation::Send, 0, 8, true);
    assert_eq!(rig.target.hca.post_send(qp, &[early]), Err(PostError::NotConnected));
    let Some(ConnectEvent::Accepted { qp: peer, .. }) = rig.initiator.hca.poll_connect() else {
        panic!("the REP is there at once in one process");
    };
    rig.target.receive(100, 0, 64);
    rig.initiator.send(peer, 1, 0, 8);
    let mut out = [WorkCompletion::EMPTY; 4];
    assert_eq!(rig.target.hca.poll(&mut out), 1);
    assert_eq!(rig.target.hca.post_send(qp, &[early]), Ok(()), "ready to send");
    assert_eq!(rig.target.hca.poll_cm(), Some(CmEvent::Established(qp)));
    assert_eq!(rig.target.hca.poll_cm(), None, "established once");
}

#[test]
fn queue_pairs_run_out_and_come_back() {
    let mut rig = Rig::unconnected(DeviceConfig::new("card"), DeviceConfig::new("client"));
    let mut attributes = rig::attributes();
    attributes.queue_pairs_max = 2;
    let space = lunar_pcie::AddressSpace::new();
    rig.target.hca = rig.target.device.group(attributes, space).unwrap();
    let (first, _) = rig.connect(PARAMETERS);
    rig.connect(PARAMETERS);
    rig.initiator.hca.connect(&rig.fabric, "srp", PARAMETERS, b"login");
    let request = rig.listener.poll().unwrap();
    let accepted = rig.target.hca.accept(request.connection, PARAMETERS, b"");
    assert_eq!(accepted, Err(CmError::NoResources));
    rig.until("the answer", |rig| rig.initiator.answers.len() == 1);
    rig.initiator.answers.clear();
    rig.target.hca.destroy(first);
    rig.connect(PARAMETERS);
}

#[test]
fn a_service_is_offered_once_at_a_time() {
    let rig = Rig::unconnected(DeviceConfig::new("card"), DeviceConfig::new("client"));
    assert!(rig.target.device.listener(&rig.fabric, "srp").is_err());
    let fabric = rig.fabric.clone();
    drop(rig.listener);
    assert!(rig.target.device.listener(&fabric, "srp").is_ok());
}

#[test]
fn idle_connections_are_not_looked_at_and_wake_up_with_their_next_message() {
    in_every_mode(|mut rig| {
        let pairs: Vec<(QpHandle, QpHandle)> = (0..100).map(|_| rig.connect(PARAMETERS)).collect();
        rig.rounds(1000);
        for turn in 0..3 {
            for (at, (target, initiator)) in pairs.iter().enumerate() {
                let id = turn * 1000 + at as u64;
                rig.target.receive(100_000 + id, 0, 64);
                rig.initiator.send(*initiator, id, 0, 8);
                rig.until("the message", |rig| rig.target.ended(100_000 + id).is_some());
                assert_eq!(rig.target.ended(100_000 + id).unwrap().qp, *target);
                rig.until("the completion", |rig| rig.initiator.ended(id).is_some());
            }
            rig.rounds(300);
        }
    });
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let history = |seed: u64| {
        let config = |name: &str| {
            DeviceConfig::new(name).deferring(lunar_hca::Latency { minimum: 1, spread: 30 }, seed)
        };
        let mut rig = Rig::with(config("card"), config("client"), PARAMETERS);
        let key = rig.initiator.expose(0, 4096, RemoteAccess::READ_WRITE);
        let mut history = Vec::new();
        for turn in 0..100 {
            rig.initiator.receive(1000 + turn, 0, 64);
            let chain = [
                rig.target.request(turn, read_from(key, 0), 0, 64, true),
                rig.target.request(turn + 500, SendOperation::Send, 0, 8, true),
            ];
            rig.target.hca.post_send(rig.target_qp, &chain).unwrap();
            rig.target.hca.ring(rig.target_qp);
            let mut rounds = 0;
            while rig.target.ended(turn + 500).is_none() {
                rig.round();
                rounds += 1;
            }
            history.push((rounds, rig.target.completions.len(), rig.initiator.completions.len()));
        }
        history
    };
    assert_eq!(history(5), history(5));
    assert_ne!(history(5), history(6));
}

/// Whether a sleeper on the group's descriptor would wake up now.
fn is_woken(side: &rig::Side) -> bool {
    let fd = side.hca.event_fd().unwrap();
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1
}

#[test]
fn arming_sees_what_is_pending_and_wakes_for_what_comes_later() {
    // Hot (just connected) and cold (idle for long) queue pairs alike.
    for idle_rounds in [0, 500] {
        let mut rig = Rig::new(DeviceConfig::new);
        for id in 0..4 {
            rig.target.receive(id, 0, 64);
        }
        rig.rounds(idle_rounds + 2);
        rig.initiator.send(rig.initiator_qp, 1, 0, 8);
        assert!(!rig.target.hca.arm(), "a message waits");
        rig.rounds(2);
        assert!(rig.target.hca.arm());
        assert!(!is_woken(&rig.target));
        rig.initiator.send(rig.initiator_qp, 2, 0, 8);
        assert!(is_woken(&rig.target));
        rig.rounds(2);
        assert_eq!(rig.target.completions.len(), 2);
        // Armed is armed once: after a poll nobody writes the descriptor.
        let before = rig.initiator.hca.statistics().wake_ups;
        rig.initiator.send(rig.initiator_qp, 3, 0, 8);
        rig.rounds(2);
        assert_eq!(rig.initiator.hca.statistics().wake_ups, before);
        assert!(rig.target.hca.arm());
        assert!(!is_woken(&rig.target));
        rig.target.device.port_down();
        assert!(is_woken(&rig.target), "device events wake as well");
    }
}

#[test]
fn a_lost_wake_up_costs_latency_only() {
    let mut rig = Rig::new(DeviceConfig::new);
    rig.target.receive(0, 0, 64);
    rig.rounds(500);
    rig.initiator.device.drop_wake_ups(true);
    rig.initiator.poll();
    assert!(rig.target.hca.arm());
    rig.initiator.send(rig.initiator_qp, 1, 0, 8);
    assert!(!is_woken(&rig.target));
    rig.target.poll();
    assert!(rig.target.ended(0).is_some());
}
