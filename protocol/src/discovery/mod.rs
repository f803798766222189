//! How offers spread: notices by shard, signs of life, and offers that are asked for.

use std::time::Duration;

/// The shortest period between two signs of life of an offer.
pub const PERIOD_MIN: Duration = Duration::from_secs(60);
/// The longest.
pub const PERIOD_MAX: Duration = Duration::from_secs(3600);
/// How long an offer may live on its last sign of life: three of the longest periods.
pub const LIFE_MAX: Duration = Duration::from_secs(3 * 3600);
