//! What a client makes of a response: residuals, task management codes, and fast-fail.

use lunar_scsi::sense::SenseKey;
use lunar_scsi::status::Status;
use lunar_srp::iu::{Residual, Response, encode_response};
use lunar_vscsi::crq::CrqStatus;
use lunar_vscsi::mad::OsType;
use lunar_vscsi::response::{
    ManagementOutcome, Outcome, adapt, crq_status, management_code, residual_as_read, status_of,
};

/// WIRE 7, from the bytes of a response: either form of sense, and what was moved.
#[test]
fn wire_7_fast_fail_is_seen_in_an_encoded_response() {
    let fixed = [0x70, 0, 4, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x44, 0];
    let descriptor = [0x72, 4, 0x44, 0, 0, 0, 0, 0];
    let medium_error = [0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0];
    let status = |sense: &[u8], data_in_residual, operation_code, fast_fail| {
        let status = Status::CheckCondition as u8;
        let response = Response { status, sense, data_in_residual, ..Response::default() };
        let mut iu = [0; 128];
        let length = encode_response(&response, &mut iu).expect("it fits");
        status_of(&iu[..length], operation_code, 4096, fast_fail)
    };
    let none = Residual::Under(4096);
    for sense in [&fixed[..], &descriptor] {
        assert_eq!(status(sense, none, 0x28, true), CrqStatus::AdapterFail);
        assert_eq!(status(sense, Residual::None, 0x8A, true), CrqStatus::AdapterFail);
        assert_eq!(status(sense, Residual::Under(512), 0x28, true), CrqStatus::Ok, "a part");
        assert_eq!(status(sense, none, 0x12, true), CrqStatus::Ok, "INQUIRY");
        assert_eq!(status(sense, none, 0x28, false), CrqStatus::Ok, "not asked for");
    }
    assert_eq!(status(&medium_error, none, 0x28, true), CrqStatus::Ok);
    assert_eq!(status_of(&[0xC1; 8], 0x28, 0, true), CrqStatus::Ok);
}

/// What is encoded for SRP and adapted is what is encoded for the client.
#[test]
fn an_adapted_response_is_the_one_that_would_be_encoded() {
    let residuals = [Residual::None, Residual::Under(5), Residual::Over(7)];
    for client in [OsType::LINUX, OsType::AIX] {
        for (out, in_) in residuals.into_iter().flat_map(|out| residuals.map(|in_| (out, in_))) {
            let encode = |out, in_| {
                let (tag, sense) = (9, &[0x70, 0, 5][..]);
                let residuals = Response {
                    data_out_residual: out,
                    data_in_residual: in_,
                    ..Response::default()
                };
                let mut iu = [0; 64];
                let length = encode_response(&Response { tag, sense, ..residuals }, &mut iu);
                (length, iu)
            };
            let (_, mut iu) = encode(out, in_);
            adapt(&mut iu, client);
            let as_read = |residual| residual_as_read(residual, client);
            assert_eq!(iu, encode(as_read(out), as_read(in_)).1, "{client:?} {out:?} {in_:?}");
        }
    }
    adapt(&mut [0xC1; 8], OsType::LINUX);
}

/// WIRE 5: Linux reads the overflow flags only, and their counts as bytes that were not transferred.
#[test]
fn wire_5_linux_reads_a_short_transfer_in_the_overflow_flags() {
    let encode = |residual, client| {
        let response = Response {
            data_in_residual: residual_as_read(residual, client),
            ..Response::default()
        };
        let mut out = [0; 36];
        assert_eq!(encode_response(&response, &mut out), Some(36));
        (out[18], u32::from_be_bytes([out[24], out[25], out[26], out[27]]))
    };
    assert_eq!(encode(Residual::Under(100), OsType::LINUX), (0x10, 100), "DIOVER");
    assert_eq!(encode(Residual::Over(100), OsType::LINUX), (0, 0), "the buffer was filled");
    assert_eq!(encode(Residual::None, OsType::LINUX), (0, 0));
    // Whoever reads SRP's own gets SRP's own.
    for client in [OsType::AIX, OsType::OS400, OsType::default()] {
        assert_eq!(encode(Residual::Under(100), client), (0x20, 100), "DIUNDER");
        assert_eq!(encode(Residual::Over(100), client), (0x10, 100), "DIOVER");
    }
}

/// WIRE 5: a number of four bytes which must be zero; no such task is a success, no such unit is 4.
#[test]
fn wire_5_task_management_codes_as_four_bytes() {
    use ManagementOutcome as M;
    for (outcome, code) in [
        (M::Complete, 0),
        (M::NoSuchTask, 0),
        (M::NoSuchUnit, 4),
        (M::NotSupported, 4),
        (M::FieldsInvalid, 2),
        (M::Failed, 5),
    ] {
        let response =
            Response { response_code: Some(management_code(outcome)), ..Response::default() };
        let mut out = [0; 40];
        assert_eq!(encode_response(&response, &mut out), Some(40));
        assert_eq!(out[18], 0x01, "RSPVALID");
        assert_eq!(out[32..36], [0, 0, 0, 4], "length");
        assert_eq!(u32::from_be_bytes([out[36], out[37], out[38], out[39]]), code);
    }
}

/// WIRE 7: READ or WRITE, HARDWARE ERROR, and no or full residual; each alone is not enough.
#[test]
fn wire_7_fast_fail_answers_a_failed_path_with_status_10h() {
    let failed = Outcome {
        operation_code: 0x28,
        status: Status::CheckCondition,
        sense_key: Some(SenseKey::HardwareError),
        residual: Residual::Under(4096),
        offered_bytes: 4096,
    };
    assert_eq!(crq_status(&failed, true), CrqStatus::AdapterFail);
    assert_eq!(crq_status(&failed, false), CrqStatus::Ok, "not asked for");
    for operation_code in [0x08, 0x0A, 0x28, 0x2A, 0x88, 0x8A, 0xA8, 0xAA] {
        let outcome = Outcome { operation_code, ..failed };
        assert_eq!(crq_status(&outcome, true), CrqStatus::AdapterFail, "{operation_code:02x}");
    }
    let whole = Outcome { residual: Residual::None, ..failed };
    assert_eq!(crq_status(&whole, true), CrqStatus::AdapterFail);
    for (why, outcome) in [
        ("part of it moved", Outcome { residual: Residual::Under(512), ..failed }),
        ("too much came", Outcome { residual: Residual::Over(4096), ..failed }),
        ("medium error", Outcome { sense_key: Some(SenseKey::MediumError), ..failed }),
        ("no sense", Outcome { sense_key: None, ..failed }),
        ("busy", Outcome { status: Status::Busy, ..failed }),
        ("INQUIRY", Outcome { operation_code: 0x12, ..failed }),
    ] {
        assert_eq!(crq_status(&outcome, true), CrqStatus::Ok, "{why}");
    }
}
