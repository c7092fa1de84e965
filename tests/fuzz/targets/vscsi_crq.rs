//! Any sixteen bytes as a queue entry, to a server and to a client: they come out the same, and what is
//! understood is said again with the same meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_vscsi::crq::{Entry, Incoming, Numbering, PayloadFormat};

fuzz_target!(|bytes: &[u8]| {
    for chunk in bytes.as_chunks::<16>().0 {
        let entry = Entry::from_bytes(*chunk);
        assert_eq!(entry.to_bytes(), *chunk);
        let (high, low) = entry.to_words();
        assert_eq!(Entry::from_words(high, low), entry);
        let incoming = entry.read();
        let again = match incoming {
            Incoming::Init => Entry::INIT,
            Incoming::InitComplete => Entry::INIT_COMPLETE,
            Incoming::Transport(event) => Entry::transport(event),
            Incoming::Request(request) => Entry::request(request),
            Incoming::Ping(ping) => {
                assert_eq!(ping.ping_response().read(), Incoming::PingResponse);
                ping
            }
            Incoming::PingResponse | Incoming::Unknown | Incoming::Free => entry,
        };
        assert_eq!(again.read(), incoming);
        if let Some(answer) = entry.read_answer() {
            assert_eq!(Entry::answer(answer).read_answer(), Some(answer));
        }
        for numbering in [Numbering::Papr, Numbering::Qemu] {
            if let Some(format) = PayloadFormat::from_code(entry.format, numbering) {
                assert_eq!(format.code_in(numbering), entry.format);
            }
        }
    }
});
