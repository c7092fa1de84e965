use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn a_value_lies_in_its_bucket(value in prop_oneof![0..4096_u64, any::<u64>(), 0..VALUE_MAX]) {
        let bucket = bucket_of(value);
        prop_assert!(bucket < BUCKETS);
        prop_assert!(least_value_of(bucket) <= value);
        if bucket + 1 < BUCKETS {
            prop_assert!(value < least_value_of(bucket + 1));
        } else {
            prop_assert!(value >= VALUE_MAX);
        }
    }
}

#[test]
fn buckets_ascend_and_are_at_most_a_sixteenth_wide() {
    for bucket in 0..BUCKETS - 1 {
        let (from, to) = (least_value_of(bucket), least_value_of(bucket + 1));
        assert!(from < to);
        assert!(to - from == 1 || (to - from) * 16 <= from, "bucket {bucket}: {from}..{to}");
        assert_eq!(bucket_of(from), bucket);
        assert_eq!(bucket_of(to - 1), bucket);
    }
    assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    assert_eq!(BUCKETS, 545, "the range that control.proto names for Histogram.buckets");
}
