//! How far apart regions are: Azure's published round trips, 95th percentiles over 30 days, July 2026.
//! Source: MicrosoftDocs/azure-docs, CC-BY-4.0; see `NOTICE`.
//! Invariant: a distance is the same both ways: of the two measurements, which differ by up to 10 ms, the one in the row of the
//! region that comes first.

use std::sync::LazyLock;

/// How many.
pub const COUNT: usize = 15;

/// The regions, in the order of the table: East US, Central US, West US 2, Canada Central, Brazil South, France Central, Germany
/// West Central, UAE North, South Africa North, Central India, Southeast Asia, East Asia, Japan East, Korea Central, Australia
/// East.
pub const REGIONS: [&str; COUNT] = [
    "us-east",
    "us-central",
    "us-west",
    "canada",
    "brazil",
    "france",
    "germany",
    "uae",
    "south-africa",
    "india",
    "asia-southeast",
    "asia-east",
    "japan",
    "korea",
    "australia",
];

/// A region's place in [`REGIONS`].
#[must_use]
pub fn region(name: &str) -> Option<usize> {
    REGIONS.iter().position(|region| *region == name)
}

/// The round trip between two places in [`REGIONS`], in microseconds; a millisecond within a region.
///
/// # Panics
/// If there is no such place.
#[must_use]
pub fn rtt_us(a: usize, b: usize) -> u64 {
    static TABLE: LazyLock<[[u64; COUNT]; COUNT]> = LazyLock::new(parse);
    TABLE[a.min(b)][a.max(b)]
}

fn parse() -> [[u64; COUNT]; COUNT] {
    let mut rows = include_str!("../../data/regions.csv").lines().skip(1);
    std::array::from_fn(|_| {
        let mut fields = rows.next().expect("a row for each region").split(',').skip(1);
        std::array::from_fn(|_| {
            let millis: u64 = fields.next().and_then(|field| field.parse().ok()).expect("a field for each region");
            millis * 1000
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_published_one() {
        let names: Vec<&str> =
            include_str!("../../data/regions.csv").lines().map(|row| row.split(',').next().unwrap()).collect();
        assert_eq!(names.len(), COUNT + 1);
        assert_eq!((names[1], names[6], names[15]), ("East US", "France Central", "Australia East"));
        let millis = |a: &str, b: &str| rtt_us(region(a).unwrap(), region(b).unwrap()) / 1000;
        assert_eq!(millis("us-east", "france"), 90);
        assert_eq!(millis("france", "germany"), 14);
        // Measured as 214 and 218.
        assert_eq!((millis("us-east", "india"), millis("india", "us-east")), (214, 214));
        assert_eq!(millis("south-africa", "australia"), 347);
        assert_eq!(region("moon"), None);
        for a in 0..COUNT {
            assert_eq!(rtt_us(a, a), 1000);
            for b in 0..COUNT {
                assert!(a == b || (10_000..400_000).contains(&rtt_us(a, b)));
            }
        }
    }
}
