//! Times in ns, counted in buckets of less than 1 % of the time.

const N_SUB_BITS: u32 = 7;
const N_BUCKETS: usize = (65 - N_SUB_BITS as usize) << N_SUB_BITS;

pub struct Histogram {
    counts: Vec<u64>,
    n: u64,
    max_ns: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; N_BUCKETS], n: 0, max_ns: 0 }
    }

    pub fn add(&mut self, time_ns: u64, n: u64) {
        self.counts[bucket(time_ns)] += n;
        self.n += n;
        self.max_ns = self.max_ns.max(time_ns);
    }

    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    pub fn max_ms(&self) -> f64 {
        self.max_ns as f64 / 1e6
    }

    /// The time that a share of all does not exceed.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let rank = ((self.n as f64 * share).ceil() as u64).max(1);
        let mut n = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            n += count;
            if n >= rank {
                return middle_ns(bucket).min(self.max_ns as f64) / 1e6;
            }
        }
        self.max_ms()
    }
}

/// The first 256 are 1 ns wide, the next 128 2 ns, and so on.
fn bucket(time_ns: u64) -> usize {
    let shift = (63 - (time_ns | 1).leading_zeros()).saturating_sub(N_SUB_BITS);
    ((shift as usize) << N_SUB_BITS) + (time_ns >> shift) as usize
}

fn middle_ns(bucket: usize) -> f64 {
    let shift = (bucket >> N_SUB_BITS).saturating_sub(1);
    let width = (1u64 << shift) as f64;
    (bucket - (shift << N_SUB_BITS)) as f64 * width + (width - 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bucket_and_is_kept_within_1_percent() {
        let times = (0..64).flat_map(|i| [1u64 << i, (1 << i) + (1 << i) / 3, (1 << i) - 1]).chain([u64::MAX]);
        for time_ns in times {
            assert!((middle_ns(bucket(time_ns)) - time_ns as f64).abs() <= time_ns as f64 / 128.0, "{time_ns}");
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_added() {
        let mut histogram = Histogram::new();
        for i in 1..=1000 {
            histogram.add(i * 1_000_000, 2);
        }
        for (share, expected_ms) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            assert!((histogram.quantile_ms(share) / expected_ms - 1.0).abs() < 0.01, "{share}");
        }
        assert_eq!(histogram.max_ms(), 1000.0);
    }
}
