//! Any bytes as an scst.conf: a tree, or diagnostics that say what is wrong and where. A tree that was
//! read is written as a file that reads as the same tree.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match lunar_mgmt::read("fuzz.conf", bytes) {
    Ok((tree, _)) => {
        let written = lunar_mgmt::write(&tree);
        match lunar_mgmt::read("written.conf", written.as_bytes()) {
            Ok((again, _)) => assert_eq!(again, tree, "{written}"),
            Err(refused) => panic!("{refused}\n{written}"),
        }
    }
    Err(refused) => assert!(!refused.to_string().is_empty()),
});
