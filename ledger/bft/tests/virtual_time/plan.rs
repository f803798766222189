//! What a run is like, drawn from its seed: how many validators, who lies and how, what breaks and when.
//! Invariant: fewer than a third lie; from [`Plan::calm_us`] on nothing breaks any more.

use std::collections::BTreeSet;
use std::time::Duration;

use arc_malachitebft_core_types::LinearTimeouts;
use spillway_bft::Settings;
use spillway_simulator::draws::Draws;

/// A second, in the world's unit.
pub const SECOND_US: u64 = 1_000_000;
/// From then on no message is lost, nothing is cut, nobody is killed, in a plan that is drawn.
const CALM_US: u64 = 8 * SECOND_US;

/// How a validator lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It says nothing at all.
    Silent,
    /// It says one thing to some and another to others: blocks, and votes in both steps.
    TwoFaced,
    /// It proposes blocks with a wrong state root.
    WrongState,
    /// It proposes blocks an hour ahead.
    Future,
    /// It sends some peers other entries under the header that it proposes.
    SameHeader,
    /// It votes for whatever anybody proposes, in both steps, beside its own votes.
    Approves,
}

/// What is wrong with the driver or the committee, on purpose, to see that the checks notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    None,
    /// A killed validator finds its log empty.
    ForgetsLog,
    /// The engine takes more than a third of the votes for a quorum.
    LowQuorum,
    /// The network stays cut in two halves for ever.
    StaysCut,
}

/// A validator is killed.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    pub at_us: u64,
    pub node: usize,
    /// In front of which of its next effects it dies.
    pub effects: u32,
    /// If it dies while it sends: how many peers still get the message.
    pub reached: usize,
    /// How long it is down, in microseconds.
    pub down_us: u64,
}

/// The network is cut in two for a while.
#[derive(Clone, Debug)]
pub struct Cut {
    pub at_us: u64,
    pub until_us: u64,
    pub side: BTreeSet<usize>,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub validators: usize,
    pub lies: Vec<Option<Lie>>,
    /// One-way delay between two validators, in microseconds, without jitter.
    pub way_us: Vec<Vec<u64>>,
    /// Mean of the exponential jitter, in microseconds; it reorders.
    pub jitter_us: u64,
    pub drop_per_million: u32,
    pub twice_per_million: u32,
    pub kills: Vec<Kill>,
    pub cuts: Vec<Cut>,
    /// How far each clock is off, in milliseconds.
    pub skew_ms: Vec<i64>,
    /// Whether evidence goes on the ledger, which takes the liar out of the committee.
    pub report: bool,
    /// Mean time between two entries of clients, in microseconds.
    pub client_us: u64,
    /// From then on nothing breaks any more.
    pub calm_us: u64,
    pub sabotage: Sabotage,
}

impl Plan {
    /// Four honest validators close to each other without anything to do; one is away for half a minute.
    pub fn away(seed: u64) -> Plan {
        let mut draws = Draws::new(seed, "away");
        let at_us = 2 * SECOND_US + draws.below(SECOND_US);
        let down_us = 30 * SECOND_US;
        Plan {
            validators: 4,
            lies: vec![None; 4],
            way_us: vec![vec![500; 4]; 4],
            jitter_us: 200,
            drop_per_million: 0,
            twice_per_million: 0,
            kills: vec![Kill { at_us, node: index(&mut draws, 4), effects: 0, reached: 0, down_us }],
            cuts: Vec::new(),
            skew_ms: vec![0; 4],
            report: true,
            client_us: 3_600 * SECOND_US,
            calm_us: at_us + down_us,
            sabotage: Sabotage::None,
        }
    }

    pub fn drawn(seed: u64, sabotage: Sabotage) -> Plan {
        let mut draws = Draws::new(seed, "plan");
        let validators = 4 + index(&mut draws, 4);
        let mut order: Vec<usize> = (0..validators).collect();
        shuffle(&mut draws, &mut order);
        let mut lies = vec![None; validators];
        let liars = if draws.happens(300_000) { 0 } else { 1 + index(&mut draws, (validators - 1) / 3) };
        for liar in &order[..liars] {
            let kinds = [
                Lie::Silent,
                Lie::TwoFaced,
                Lie::TwoFaced,
                Lie::WrongState,
                Lie::Future,
                Lie::SameHeader,
                Lie::Approves,
            ];
            lies[*liar] = Some(kinds[index(&mut draws, kinds.len())]);
        }
        let base = [500, 5_000, 40_000, 100_000][index(&mut draws, 4)];
        let way_us = (0..validators).map(|_| (0..validators).map(|_| base + draws.below(base)).collect()).collect();
        let jitter_us = [200, 5_000, 60_000][index(&mut draws, 3)];
        let drop_per_million = [0, 10_000, 50_000, 200_000][index(&mut draws, 4)];
        let twice_per_million = [0, 50_000][index(&mut draws, 2)];
        let kills = (0..index(&mut draws, 8)).map(|_| Kill {
            at_us: draws.below(CALM_US),
            node: index(&mut draws, validators),
            effects: u32::try_from(draws.below(24)).expect("below 24"),
            reached: index(&mut draws, validators),
            down_us: 20_000 + draws.wait(600_000).min(4 * SECOND_US),
        });
        let kills = kills.collect();
        let cuts = (0..index(&mut draws, 4)).map(|_| {
            shuffle(&mut draws, &mut order);
            let at_us = draws.below(CALM_US);
            let count = if draws.happens(500_000) { validators / 2 } else { 1 };
            let until_us = (at_us + 300_000 + draws.wait(2 * SECOND_US)).min(CALM_US);
            Cut { at_us, until_us, side: order[..count].iter().copied().collect() }
        });
        let mut cuts: Vec<Cut> = cuts.collect();
        if sabotage == Sabotage::StaysCut {
            cuts.push(Cut { at_us: 0, until_us: u64::MAX, side: (0..validators / 2).collect() });
        }
        let skew_ms = (0..validators).map(|_| i64::try_from(draws.below(3_000)).expect("below 3,000") - 1_500);
        let skew_ms = skew_ms.collect();
        Plan {
            validators,
            lies,
            way_us,
            jitter_us,
            drop_per_million,
            twice_per_million,
            kills,
            cuts,
            skew_ms,
            report: draws.happens(500_000),
            client_us: [100_000, 700_000, 3 * SECOND_US][index(&mut draws, 3)],
            calm_us: CALM_US,
            sabotage,
        }
    }

    pub fn honest(&self, node: usize) -> bool {
        self.lies[node].is_none()
    }
}

fn shuffle(draws: &mut Draws, order: &mut [usize]) {
    for place in (1..order.len()).rev() {
        order.swap(place, index(draws, place + 1));
    }
}

/// A number below `end`.
pub fn index(draws: &mut Draws, end: usize) -> usize {
    usize::try_from(draws.below(end as u64)).expect("below a number of things in memory")
}

/// The settings that ship.
pub fn settings() -> Settings {
    Settings::new("/ip4/127.0.0.1/tcp/0", Vec::new(), "unused")
}

/// The engine's waits under [`settings`], as the crate computes them.
pub fn timeouts() -> LinearTimeouts {
    let settings = settings();
    let ms = Duration::from_millis;
    LinearTimeouts {
        propose: ms(settings.propose_ms),
        propose_delta: ms(settings.longer_ms),
        prevote: ms(settings.vote_ms),
        prevote_delta: ms(settings.longer_ms),
        precommit: ms(settings.vote_ms),
        precommit_delta: ms(settings.longer_ms),
        rebroadcast: ms(settings.propose_ms + 2 * settings.vote_ms),
        max_timeout: ms(settings.longest_ms),
    }
}
