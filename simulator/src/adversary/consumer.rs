//! Consumers that break the rules.
//! Invariant: what they sign they sign with their own keys; what they open twice they open on their own sessions.

use super::{Adversary, Mischief};
use crate::network::HostId;
use crate::world::{Happening, World};
use spillway_ledger::{Action, Credits, Digest, Entry, JobId, SessionId, Signed, SignedBytes, Voucher, decode, encode};
use spillway_protocol::{Effect, Event, Frame, Kind, LedgerCommand, OpenJob, Probe, ProbeId, StreamId};

/// The prompt of an opening that nobody pays, in bytes.
const FLOOD_BODY: usize = 4000;

impl World {
    pub(super) fn twist_consumer(&mut self, id: HostId, mischief: &mut Mischief, effect: Effect) -> Vec<Effect> {
        match effect {
            Effect::Send { frame: Frame::Voucher(_), .. } if mischief.kind == Adversary::NonPayer => Vec::new(),
            Effect::Send { stream, frame: Frame::Voucher(voucher) } => {
                let voucher = self.twist_voucher(id, mischief, voucher);
                vec![Effect::Send { stream, frame: Frame::Voucher(voucher) }]
            }
            Effect::Send { stream, frame: Frame::Open(mut open) } => {
                open.voucher = self.twist_voucher(id, mischief, open.voucher);
                if mischief.kind == Adversary::DoubleOpen {
                    self.open_again(id, mischief, stream, &open);
                }
                vec![Effect::Send { stream, frame: Frame::Open(open) }]
            }
            Effect::Ledger { business, command } => {
                if mischief.kind == Adversary::DoubleOpen {
                    self.lock_twice(id, mischief, &command);
                }
                vec![Effect::Ledger { business, command }]
            }
            other => vec![other],
        }
    }

    pub(super) fn colour_consumer(&mut self, id: HostId, mischief: &mut Mischief, event: Event) -> Option<Event> {
        match event {
            Event::StreamOpened(stream) => {
                let Some(frame) = mischief.own_streams.remove(&stream) else { return Some(event) };
                self.carry_one(id, Effect::Send { stream, frame });
                None
            }
            Event::OfferReceived(offer) if mischief.kind == Adversary::Washer => {
                let seller = self.by_node.get(&offer.value().node)?;
                // A fleet of adversaries is somebody's; it buys of nobody else.
                let theirs = self.hosts[*seller].adversary.is_some_and(Adversary::is_provider);
                theirs.then_some(Event::OfferReceived(offer))
            }
            Event::ProbeReplied { probe, reply } if mischief.floods.contains_key(&probe) => {
                let to = mischief.floods.remove(&probe)?;
                if let Ok(quote) = reply?.quote {
                    let open = self.worthless(id, mischief, to, quote);
                    self.call_beside(id, mischief, to, Frame::Open(open));
                }
                None
            }
            other => Some(other),
        }
    }

    fn twist_voucher(&mut self, id: HostId, mischief: &mut Mischief, wire: SignedBytes) -> SignedBytes {
        let host = &self.hosts[id];
        let Ok(mut voucher) = decode::<Voucher>(&wire.document) else { return wire };
        let session = voucher.session;
        match mischief.kind {
            Adversary::ForgedVouchers => {
                voucher.total = Credits::new(voucher.total.micro().saturating_mul(2));
                SignedBytes { document: encode(&voucher), ..wire }
            }
            Adversary::OtherKey => Signed::sign(voucher, &host.node_secret).to_wire(),
            Adversary::ForeignVouchers => {
                mischief.vouchers.insert(session, wire.clone());
                let other = mischief.vouchers.iter().find(|(other, _)| **other != session);
                other.map_or(wire, |(_, other)| other.clone())
            }
            Adversary::OldVouchers => mischief.vouchers.entry(session).or_insert(wire).clone(),
            Adversary::OverDeposit => {
                let deposit = self.authority.session(&session).map_or(voucher.total, |seen| seen.deposit);
                voucher.total = Credits::new(deposit.micro().saturating_mul(10));
                Signed::sign(voucher, &host.account_secret).to_wire()
            }
            _ => wire,
        }
    }

    /// Calls the same provider again, with the same opening.
    fn open_again(&mut self, id: HostId, mischief: &mut Mischief, stream: StreamId, open: &OpenJob) {
        let Some((link, _)) = self.network.find(id, stream) else { return };
        let Some(provider) = self.network.link(link).map(|found| found.ends[1].host) else { return };
        self.call_beside(id, mischief, provider, Frame::Open(open.clone()));
    }

    /// Opens a stream that the peer knows nothing of.
    fn call_beside(&mut self, id: HostId, mischief: &mut Mischief, provider: HostId, frame: Frame) {
        let stream = StreamId::Out(mischief.number());
        mischief.own_streams.insert(stream, frame);
        let peer = self.hosts[provider].node;
        self.carry_one(id, Effect::OpenStream { stream, peer, addresses: Vec::new() });
    }

    /// Signs a second opening with the same nonce, for somebody else, and hands both in.
    fn lock_twice(&mut self, id: HostId, mischief: &mut Mischief, command: &LedgerCommand) {
        let LedgerCommand::Open { provider, voucher_key, price_cap, expires_ms, .. } = command else { return };
        let host = &self.hosts[id];
        let others: Vec<_> = self.hosts.iter().map(|host| host.account).filter(|other| other != provider).collect();
        let other = others[mischief.draws.below(others.len() as u64) as usize];
        let account = host.account;
        let entry = Entry {
            network: self.market,
            account,
            nonce: self.authority.book.nonce(&account),
            expires_height: self.authority.expiry(),
            business: mischief.draws.name(),
            action: Action::Open {
                provider: other,
                gateway: account,
                voucher_key: *voucher_key,
                deposit: self.authority.book.balance(&account),
                price_cap: *price_cap,
                expires_ms: *expires_ms,
            },
        };
        let (entry, life) = (Signed::sign(entry, &host.account_secret), host.life);
        self.line.after(1000, Happening::Submitted(id, life, Box::new(entry)));
    }

    /// A probe to somebody; a quote that comes back is answered with an opening that nobody pays.
    pub(super) fn flood(&mut self, id: HostId, mischief: &mut Mischief) {
        let providers: Vec<HostId> = (0..self.hosts.len())
            .filter(|provider| {
                *provider != id && self.hosts[*provider].config.provide && self.hosts[*provider].peer.is_some()
            })
            .collect();
        if providers.is_empty() {
            return;
        }
        let to = providers[mischief.draws.below(providers.len() as u64) as usize];
        let model = self.hosts[to].gpu.as_ref().map(|gpu| gpu.rules().model.clone()).unwrap_or_default();
        let request = Probe {
            network: self.market,
            model: model.clone(),
            kind: Kind::Chat,
            prompt_units: FLOOD_BODY as u64,
            output_max: 1000,
            window_max: 1 << 20,
            prefix: Vec::new(),
        };
        let probe = ProbeId(mischief.number());
        mischief.floods.insert(probe, to);
        let peer = self.hosts[to].node;
        self.carry_one(id, Effect::SendProbe { probe, peer, addresses: Vec::new(), request });
    }

    /// An opening that is well formed, with a quote that holds, on a session that does not exist.
    fn worthless(&self, id: HostId, mischief: &mut Mischief, to: HostId, quote: SignedBytes) -> OpenJob {
        let (host, seller) = (&self.hosts[id], &self.hosts[to]);
        let model = seller.gpu.as_ref().map(|gpu| gpu.rules().model.clone()).unwrap_or_default();
        let session = SessionId(Digest::of("adversary/session", &[&mischief.draws.name()]));
        let (network, total) = (self.market, Credits::new(1_000_000));
        let voucher = Voucher { network, session, sequence: 1, total, input: 0, output: 0 };
        OpenJob {
            job: JobId(mischief.draws.name()),
            leg: 0,
            model,
            kind: Kind::Chat,
            body: vec![b'x'; FLOOD_BODY],
            prefix: Vec::new(),
            output_max: 1000,
            continuable: true,
            quote,
            voucher: Signed::sign(voucher, &host.account_secret).to_wire(),
        }
    }
}
