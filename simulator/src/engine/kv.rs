//! The KV memory: blocks in use, and blocks that stay because a later prompt may begin the same way.
//! Invariant: blocks in use and idle ones together never exceed the capacity; an idle one gives way, oldest first.

use hashbrown::HashTable;

/// Tokens of a KV block.
pub(super) const BLOCK: u32 = 16;

/// No node.
const NONE: u32 = u32::MAX;

/// A named piece of a prompt whose KV is in memory.
#[derive(Clone, Copy, Debug)]
struct Node {
    name: u64,
    /// Sequences that use it. Idle at 0.
    users: u32,
    older: u32,
    newer: u32,
}

/// The memory. Counts in blocks of [`BLOCK`] tokens.
#[derive(Debug)]
pub(super) struct Kv {
    capacity: u32,
    used: u32,
    /// Blocks of a named piece; 0 if there is no prefix cache.
    piece: u32,
    nodes: Vec<Node>,
    vacant: Vec<u32>,
    by_name: HashTable<u32>,
    idle: u32,
    oldest: u32,
    newest: u32,
}

impl Kv {
    /// `grain` in tokens, 0 for no prefix cache.
    pub(super) fn new(capacity_tokens: u32, grain: u32) -> Self {
        Self {
            capacity: capacity_tokens / BLOCK,
            used: 0,
            piece: grain.div_ceil(BLOCK),
            nodes: Vec::new(),
            vacant: Vec::new(),
            by_name: HashTable::new(),
            idle: 0,
            oldest: NONE,
            newest: NONE,
        }
    }

    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(super) const fn used(&self) -> u32 {
        self.used
    }

    /// Blocks that nobody uses, idle ones included.
    pub(super) const fn free(&self) -> u32 {
        self.capacity - self.used
    }

    /// Blocks of one named piece.
    pub(super) const fn piece(&self) -> u32 {
        self.piece
    }

    /// Takes `blocks` of those that are free; idle pieces give way.
    pub(super) fn take(&mut self, blocks: u32) {
        self.used += blocks;
        assert!(self.used <= self.capacity, "only free blocks are taken");
        self.make_room();
    }

    pub(super) fn give(&mut self, blocks: u32) {
        self.used = self.used.checked_sub(blocks).expect("only taken blocks are given back");
    }

    /// How many of `names` are here, up to the first that is not.
    pub(super) fn known(&self, names: &[u64]) -> u32 {
        names.iter().take_while(|name| self.find(**name).is_some()).count() as u32
    }

    /// Blocks that using these `names`, all known, takes from the free ones.
    pub(super) fn idle_blocks(&self, names: &[u64]) -> u32 {
        let idle = |name: &&u64| self.find(**name).is_some_and(|node| self.nodes[node as usize].users == 0);
        names.iter().filter(idle).count() as u32 * self.piece
    }

    /// Uses the known piece `name` from now on.
    pub(super) fn share(&mut self, name: u64) -> u32 {
        let at = self.find(name).expect("only known pieces are shared");
        if self.nodes[at as usize].users == 0 {
            self.unlink(at);
            self.used += self.piece;
            assert!(self.used <= self.capacity, "only free blocks are taken");
        }
        self.nodes[at as usize].users += 1;
        at
    }

    /// Names a piece of the caller's own blocks, which uses it from now on; none if another piece has that name already.
    pub(super) fn name(&mut self, name: u64) -> Option<u32> {
        if self.find(name).is_some() {
            return None;
        }
        let node = Node { name, users: 1, older: NONE, newer: NONE };
        let at = if let Some(at) = self.vacant.pop() {
            self.nodes[at as usize] = node;
            at
        } else {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        };
        let nodes = &self.nodes;
        self.by_name.insert_unique(hash(name), at, |at| hash(nodes[*at as usize].name));
        Some(at)
    }

    /// Ends one use of a piece; after the last it is idle.
    pub(super) fn leave(&mut self, at: u32) {
        let node = &mut self.nodes[at as usize];
        node.users = node.users.checked_sub(1).expect("each use ends once");
        if node.users > 0 {
            return;
        }
        node.older = self.newest;
        node.newer = NONE;
        if self.newest == NONE {
            self.oldest = at;
        } else {
            self.nodes[self.newest as usize].newer = at;
        }
        self.newest = at;
        self.idle += 1;
        self.give(self.piece);
    }

    fn find(&self, name: u64) -> Option<u32> {
        self.by_name.find(hash(name), |at| self.nodes[*at as usize].name == name).copied()
    }

    fn make_room(&mut self) {
        while self.used + self.idle * self.piece > self.capacity {
            let at = self.oldest;
            self.unlink(at);
            let name = self.nodes[at as usize].name;
            let entry =
                self.by_name.find_entry(hash(name), |other| *other == at).expect("each node has its name's entry");
            entry.remove();
            self.vacant.push(at);
        }
    }

    fn unlink(&mut self, at: u32) {
        let Node { older, newer, .. } = self.nodes[at as usize];
        if older == NONE {
            self.oldest = newer;
        } else {
            self.nodes[older as usize].newer = newer;
        }
        if newer == NONE {
            self.newest = older;
        } else {
            self.nodes[newer as usize].older = older;
        }
        self.idle -= 1;
    }

    /// Counts again what the sums say.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut idle = 0;
        let mut at = self.oldest;
        while at != NONE {
            assert_eq!(self.nodes[at as usize].users, 0, "an idle piece has no user");
            idle += 1;
            at = self.nodes[at as usize].newer;
        }
        assert_eq!(idle, self.idle);
        assert!(self.used + self.idle * self.piece <= self.capacity);
        assert_eq!(self.by_name.len() + self.vacant.len(), self.nodes.len());
    }
}

/// Spreads names that may be small numbers over the table (the finaliser of SplitMix64).
const fn hash(name: u64) -> u64 {
    let a = (name ^ (name >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    b ^ (b >> 31)
}
