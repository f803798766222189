//! The sequences an engine holds, each in a slot; and their queue.
//! Invariant: a [`Ticket`] names one stay in one stage: it is stale once its sequence has left that stage.

use hashbrown::HashTable;
use std::collections::VecDeque;

/// Where a sequence is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// In no stage: the slot is vacant.
    #[default]
    Gone,
    /// In the waiting queue.
    Waiting,
    /// Its prompt is being computed.
    Prefill,
    /// It gives a token each step.
    Decode,
}

/// One request inside the engine. Sizes in tokens.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    pub(super) id: u64,
    pub(super) stage: Stage,
    /// Changes with each change of stage, so that tickets go stale.
    pub(super) stay: u32,
    pub(super) stranger: bool,
    pub(super) input: u32,
    pub(super) output: u32,
    /// Names of the prompt's successive pieces.
    pub(super) names: Vec<u64>,
    /// The pieces in the cache that it uses.
    pub(super) pieces: Vec<u32>,
    /// Successive names that it has shared or tried to set.
    pub(super) named: u32,
    /// Tokens of the answer; while it decodes, at the step `since`.
    pub(super) given: u32,
    /// Tokens whose KV is computed; while it decodes, at the step `since`.
    pub(super) computed: u32,
    /// Tokens found in the cache when it was first admitted; none before.
    pub(super) cached: Option<u32>,
    /// The first step that may admit it.
    pub(super) from: u64,
    /// Tokens that it was thought to have to compute, in the load's sum.
    pub(super) counted: u32,
    /// The first step in which it decodes.
    pub(super) since: u64,
    /// Its place among all that were ever admitted.
    pub(super) order: u64,
}

impl Sequence {
    /// Tokens to compute before the next token of the answer.
    pub(super) const fn target(&self) -> u32 {
        self.input + self.given
    }
}

/// A stay of a sequence in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    pub(super) slot: u32,
    pub(super) stay: u32,
}

/// All sequences, by slot and by id.
#[derive(Debug, Default)]
pub(super) struct Slots {
    all: Vec<Sequence>,
    vacant: Vec<u32>,
    by_id: HashTable<u32>,
}

impl Slots {
    /// A slot for `id`; none if that id has one already. What its last sequence left in it is the caller's to set.
    pub(super) fn open(&mut self, id: u64) -> Option<u32> {
        if self.find(id).is_some() {
            return None;
        }
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.all.push(Sequence::default());
            (self.all.len() - 1) as u32
        });
        self.all[slot as usize].id = id;
        let all = &self.all;
        self.by_id.insert_unique(hash(id), slot, |slot| hash(all[*slot as usize].id));
        Some(slot)
    }

    pub(super) fn find(&self, id: u64) -> Option<u32> {
        self.by_id.find(hash(id), |slot| self.all[*slot as usize].id == id).copied()
    }

    /// The sequence has left every stage: its id is free, its slot not yet.
    pub(super) fn forget(&mut self, slot: u32) {
        self.enter(slot, Stage::Gone);
        let id = self.all[slot as usize].id;
        self.by_id.find_entry(hash(id), |other| *other == slot).expect("each sequence has its id's entry").remove();
    }

    /// A forgotten sequence's slot is free.
    pub(super) fn vacate(&mut self, slot: u32) {
        self.vacant.push(slot);
    }

    /// Moves a sequence to `stage`; its old tickets are stale.
    pub(super) fn enter(&mut self, slot: u32, stage: Stage) -> Ticket {
        let sequence = &mut self.all[slot as usize];
        sequence.stage = stage;
        sequence.stay = sequence.stay.wrapping_add(1);
        Ticket { slot, stay: sequence.stay }
    }

    /// The ticket of a sequence's present stay.
    pub(super) fn ticket(&self, slot: u32) -> Ticket {
        Ticket { slot, stay: self.get(slot).stay }
    }

    pub(super) fn valid(&self, ticket: Ticket) -> bool {
        self.all[ticket.slot as usize].stay == ticket.stay
    }

    pub(super) fn get(&self, slot: u32) -> &Sequence {
        &self.all[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Sequence {
        &mut self.all[slot as usize]
    }
}

/// Who waits: the owner's before strangers', each first come, first served.
#[derive(Debug, Default)]
pub(super) struct Queue {
    owner: VecDeque<Ticket>,
    stranger: VecDeque<Ticket>,
    /// Waiting sequences, without stale tickets.
    len: u32,
}

impl Queue {
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn push_back(&mut self, ticket: Ticket, stranger: bool) {
        self.class(stranger).push_back(ticket);
        self.len += 1;
    }

    /// Before all others of its class: it was preempted.
    pub(super) fn push_front(&mut self, ticket: Ticket, stranger: bool) {
        self.class(stranger).push_front(ticket);
        self.len += 1;
    }

    /// Who is next among those that the step `step` may admit. Stale tickets before it are dropped.
    pub(super) fn head(&mut self, slots: &Slots, step: u64) -> Option<u32> {
        for class in [&mut self.owner, &mut self.stranger] {
            while class.front().is_some_and(|ticket| !slots.valid(*ticket)) {
                class.pop_front();
            }
            // Who comes later may be admitted no earlier.
            let head = class.front().filter(|ticket| slots.get(ticket.slot).from <= step);
            if let Some(ticket) = head {
                return Some(ticket.slot);
            }
        }
        None
    }

    /// Takes the head out.
    pub(super) fn pop(&mut self, stranger: bool) {
        self.class(stranger).pop_front();
        self.len -= 1;
    }

    /// One sequence has left without being the head; its ticket is stale.
    pub(super) fn forget(&mut self, slots: &Slots) {
        self.len -= 1;
        // Stale tickets never outnumber the valid ones by more than a few.
        if self.owner.len() + self.stranger.len() > 2 * self.len as usize + 64 {
            self.owner.retain(|ticket| slots.valid(*ticket));
            self.stranger.retain(|ticket| slots.valid(*ticket));
        }
    }

    fn class(&mut self, stranger: bool) -> &mut VecDeque<Ticket> {
        if stranger { &mut self.stranger } else { &mut self.owner }
    }
}

/// Spreads ids that may be small numbers over the table.
const fn hash(id: u64) -> u64 {
    let mixed = (id ^ (id >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}
