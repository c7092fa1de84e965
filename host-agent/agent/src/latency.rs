//! Percentiles out of the card's sparse histograms.

use lunar_offload_proto::control;
use lunar_offload_proto::histogram::least_value_of;

use crate::api::wire;

/// The figures of one histogram; `None` for an empty or an inconsistent one (the card is not believed).
pub(crate) fn figures(
    object: &str,
    name: &str,
    histogram: &control::Histogram,
) -> Option<wire::Latency> {
    let count = histogram.counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count))?;
    if count == 0 || histogram.buckets.len() != histogram.counts.len() {
        return None;
    }
    // The value that a share of the commands did not exceed: the end of the bucket it falls into.
    let percentile = |per_mille: u64| {
        let rank = u64::try_from((u128::from(count) * u128::from(per_mille)).div_ceil(1000));
        let rank = rank.unwrap_or(count);
        let mut seen = 0_u64;
        for (bucket, count) in histogram.buckets.iter().zip(&histogram.counts) {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                let bucket = usize::try_from(*bucket).unwrap_or(usize::MAX);
                let end = least_value_of(bucket.saturating_add(1)).saturating_sub(1);
                return end.min(histogram.max_ns);
            }
        }
        histogram.max_ns
    };
    let operation = match histogram.operation() {
        control::OperationClass::Read => "read",
        control::OperationClass::Write => "write",
        control::OperationClass::Flush => "flush",
        control::OperationClass::Other | control::OperationClass::Unspecified => "other",
    };
    Some(wire::Latency {
        object: object.to_owned(),
        name: name.to_owned(),
        operation: operation.to_owned(),
        size_class_bytes: histogram.size_class_bytes,
        count,
        mean_ns: histogram.sum_ns / count,
        p50_ns: percentile(500),
        p99_ns: percentile(990),
        p999_ns: percentile(999),
        max_ns: histogram.max_ns,
    })
}

#[cfg(test)]
mod tests {
    use lunar_offload_proto::histogram::bucket_of;

    use super::*;

    fn histogram(values: &[(u64, u64)]) -> control::Histogram {
        control::Histogram {
            operation: control::OperationClass::Read.into(),
            size_class_bytes: 4096,
            buckets: values.iter().map(|(value, _)| bucket_of(*value) as u32).collect(),
            counts: values.iter().map(|(_, count)| *count).collect(),
            sum_ns: values.iter().map(|(value, count)| value * count).sum(),
            max_ns: values.iter().map(|(value, _)| *value).max().unwrap_or(0),
        }
    }

    #[test]
    fn percentiles_are_the_end_of_the_bucket_their_rank_falls_into() {
        let figures =
            figures("device", "d", &histogram(&[(10, 990), (1000, 9), (50_000, 1)])).unwrap();
        assert_eq!((figures.count, figures.p50_ns, figures.p99_ns), (1000, 10, 10));
        assert!((1000..1064).contains(&figures.p999_ns), "{}", figures.p999_ns);
        assert_eq!(figures.max_ns, 50_000);
        assert_eq!(figures.mean_ns, (9900 + 9000 + 50_000) / 1000);
    }

    #[test]
    fn nonsense_from_the_card_gives_no_figures() {
        assert_eq!(figures("device", "d", &histogram(&[])), None);
        let mut uneven = histogram(&[(10, 1)]);
        uneven.buckets.push(3);
        assert_eq!(figures("device", "d", &uneven), None);
        let mut huge = histogram(&[(10, 1), (20, 1)]);
        huge.counts = vec![u64::MAX, 1];
        assert_eq!(figures("device", "d", &huge), None);
        let mut beyond = histogram(&[(10, 1)]);
        beyond.buckets = vec![u32::MAX];
        assert!(figures("device", "d", &beyond).is_some());
    }
}
