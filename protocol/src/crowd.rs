//! Who crowds a table: members counted by account and by subnet, so that a full table gives up the most crowded group.
//! Invariant: a member counts once in each of its groups, and an empty group does not exist.

use crate::offer::Offer;
use crate::subnet::Subnet;
use spillway_ledger::{Account, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// What members may have in common. Each is a claim: whom a stranger names costs it nothing, so a group is only ever
/// thinned from its newest members on, and nobody loses an old place by being named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// Paid to one account.
    Account(Account),
    /// At addresses in one subnet.
    Subnet(Subnet),
}

impl Group {
    /// The groups of whoever made an offer: its account, and the subnet of its first public address.
    pub(crate) fn of(offer: &Offer) -> Groups {
        let subnet = offer.addresses.iter().find_map(|address| Subnet::of(address));
        (Self::Account(offer.account), subnet.map(Self::Subnet))
    }
}

/// One account, and one subnet unless all addresses are near.
pub(crate) type Groups = (Group, Option<Group>);

/// Members by group, each with a number that grows with its arrival.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    pub(crate) groups: BTreeMap<Group, BTreeSet<(u64, NodeId)>>,
    pub(crate) by_size: BTreeSet<(usize, Group)>,
}

impl Crowd {
    pub(crate) fn insert(&mut self, groups: Groups, arrival: u64, node: NodeId) {
        self.change(groups, |members| {
            members.insert((arrival, node));
        });
    }

    pub(crate) fn remove(&mut self, groups: Groups, arrival: u64, node: NodeId) {
        self.change(groups, |members| {
            members.remove(&(arrival, node));
        });
    }

    fn change(&mut self, groups: Groups, change: impl Fn(&mut BTreeSet<(u64, NodeId)>)) {
        for group in std::iter::once(groups.0).chain(groups.1) {
            let members = self.groups.entry(group).or_default();
            self.by_size.remove(&(members.len(), group));
            change(members);
            if members.is_empty() {
                self.groups.remove(&group);
            } else {
                self.by_size.insert((members.len(), group));
            }
        }
    }

    fn size(&self, groups: Groups) -> usize {
        let of = |group: &Group| self.groups.get(group).map_or(0, BTreeSet::len);
        of(&groups.0).max(groups.1.as_ref().map_or(0, of))
    }

    /// Who gives way to a newcomer of `newcomer`'s groups: the newest member, no anchor, of the most crowded group, if
    /// that group is more crowded than the newcomer's will be.
    pub(crate) fn victim(&self, newcomer: Groups, is_anchor: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let least = self.size(newcomer) + 1;
        let larger = self.by_size.iter().rev().take_while(|(size, _)| *size > least);
        // Anchors are few, so the first groups have somebody else.
        larger
            .flat_map(|(_, group)| self.groups.get(group))
            .flat_map(|members| members.iter().rev())
            .map(|(_, node)| *node)
            .find(|node| !is_anchor(node))
    }
}
