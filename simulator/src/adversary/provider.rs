//! Providers that break the rules.
//! Invariant: what they sign they sign with their own keys; a thief claims no more than a voucher that it holds.

use super::{Adversary, Mischief};
use crate::network::HostId;
use crate::oracle;
use crate::world::World;
use spillway_ledger::{Credits, Digest, Price, Receipt, SecretKey, Signed, SignedBytes, Usage, Voucher, decode};
use spillway_protocol::offer::QUOTE_LIFETIME;
use spillway_protocol::{Effect, Event, Frame, LedgerCommand, Load, Offer, ProbeReply, Quote, Refusal, StreamId};

/// By how much a receipt overcounts, and a bait's quote exceeds its offer.
const OVERCOUNT: u64 = 3;
const BAIT: u64 = 10;

impl World {
    pub(super) fn twist_provider(&mut self, id: HostId, mischief: &mut Mischief, effect: Effect) -> Vec<Effect> {
        match effect {
            // A thief claims more, in its own time.
            Effect::Ledger { command: LedgerCommand::Settle { .. }, .. } if mischief.kind.is_thief() => Vec::new(),
            Effect::Send { stream: stream @ StreamId::In(_), frame } => self.twist_frame(id, mischief, stream, frame),
            Effect::Publish(offer) if mischief.kind == Adversary::PriceBait => {
                let mut bait: Offer = offer.value().clone();
                for model in &mut bait.models {
                    model.price = scaled(&model.price, 1, BAIT);
                }
                vec![Effect::Publish(Signed::sign(bait, &self.hosts[id].node_secret))]
            }
            Effect::ReplyProbe { probe, mut reply } => {
                let consumer = mischief.asking.remove(&probe);
                if let (Adversary::OldQuotes, Some(consumer), Ok(quote)) = (mischief.kind, consumer, &reply.quote) {
                    let first = mischief.quotes.entry(consumer).or_insert_with(|| quote.clone());
                    reply.quote = Ok(first.clone());
                }
                vec![Effect::ReplyProbe { probe, reply }]
            }
            other => vec![other],
        }
    }

    fn twist_frame(&mut self, id: HostId, mischief: &mut Mischief, stream: StreamId, frame: Frame) -> Vec<Effect> {
        if mischief.kind == Adversary::Silent || mischief.hushed.contains(&stream) {
            return Vec::new();
        }
        let secret = &self.hosts[id].account_secret;
        let send = |frame| Effect::Send { stream, frame };
        match (mischief.kind, frame) {
            (Adversary::Stall, frame @ Frame::Chunk { .. }) => {
                let text = matches!(&frame, Frame::Chunk { bytes, .. } if !oracle::text_of(bytes).is_empty());
                if text {
                    mischief.hushed.insert(stream);
                }
                vec![send(frame)]
            }
            (Adversary::GrabAhead, frame @ Frame::Accepted { .. }) => {
                mischief.hushed.insert(stream);
                vec![send(frame), send(Frame::Alive { held: u64::MAX })]
            }
            (Adversary::Overcount, Frame::Done { finish, receipt, load }) => {
                vec![send(Frame::Done { finish, receipt: overcounted(secret, receipt), load })]
            }
            (Adversary::Overcount, Frame::Aborted { abort, receipt }) => {
                let receipt = receipt.map(|receipt| overcounted(secret, receipt));
                vec![send(Frame::Aborted { abort, receipt })]
            }
            (_, frame) => vec![send(frame)],
        }
    }

    pub(super) fn colour_provider(&mut self, id: HostId, mischief: &mut Mischief, event: Event) -> Option<Event> {
        match event {
            Event::FrameReceived { stream, frame: Frame::Open(open), .. }
                if mischief.kind == Adversary::FalseCapacity =>
            {
                keep(mischief, &open.voucher);
                let frame = Frame::Refused { refusal: Refusal::Busy, retry_after_ms: 0, load: idle_load() };
                self.carry_one(id, Effect::Send { stream, frame });
                self.carry_one(id, Effect::CloseStream(stream));
                None
            }
            Event::ProbeReceived { probe, peer, request } if mischief.kind == Adversary::FalseCapacity => {
                let host = &self.hosts[id];
                let quote = Quote {
                    network: self.market,
                    provider: host.node,
                    account: host.account,
                    consumer: peer,
                    model: request.model,
                    price: host.config.price,
                    window: host.config.window.min(request.window_max),
                    cached: 0,
                    prefix: 0,
                    valid_until_ms: self.line.now().after(QUOTE_LIFETIME).ms(),
                };
                let reply = ProbeReply {
                    load: idle_load(),
                    cached_units: 0,
                    hot: Vec::new(),
                    retry_after_ms: 0,
                    quote: Ok(Signed::sign(quote, &host.node_secret).to_wire()),
                };
                self.carry_one(id, Effect::ReplyProbe { probe, reply });
                None
            }
            Event::ProbeReceived { probe, peer, request } => {
                mischief.asking.insert(probe, peer);
                Some(Event::ProbeReceived { probe, peer, request })
            }
            Event::FrameReceived { stream, peer, frame, text } => {
                match &frame {
                    Frame::Open(open) => keep(mischief, &open.voucher),
                    Frame::Voucher(voucher) => keep(mischief, voucher),
                    _ => {}
                }
                Some(Event::FrameReceived { stream, peer, frame, text })
            }
            Event::Output { work, text, .. } if mischief.kind == Adversary::OtherText => {
                let text = vec![oracle::OTHER; text.len()];
                Some(Event::Output { work, bytes: oracle::event(&text), text })
            }
            other => Some(other),
        }
    }

    /// Claims all that was vouched and is not paid yet.
    pub(super) fn claim_all(&mut self, id: HostId, mischief: &Mischief) {
        for (session, (total, voucher)) in &mischief.loot {
            let open = self.authority.session(session);
            let open = open.is_some_and(|seen| !seen.closed && seen.settled.micro() < *total);
            if !open {
                continue;
            }
            let digest = Digest::of("adversary/settle", &[session.0.as_bytes(), &total.to_le_bytes()]);
            let mut business = [0; 16];
            business.copy_from_slice(&digest.as_bytes()[..16]);
            let command = LedgerCommand::Settle {
                voucher: voucher.clone(),
                claim: Credits::new(*total),
                usage: Usage::default(),
                receipts: digest,
                last: false,
            };
            self.carry_one(id, Effect::Ledger { business, command });
        }
    }
}

/// Keeps the best voucher of each session.
fn keep(mischief: &mut Mischief, wire: &SignedBytes) {
    let Ok(voucher) = decode::<Voucher>(&wire.document) else { return };
    let best = mischief.loot.entry(voucher.session).or_insert_with(|| (0, wire.clone()));
    if voucher.total.micro() > best.0 {
        *best = (voucher.total.micro(), wire.clone());
    }
}

fn scaled(price: &Price, by: u64, of: u64) -> Price {
    let scale = |credits: Credits| Credits::new(credits.micro() * by / of);
    Price { input: scale(price.input), cached: scale(price.cached), output: scale(price.output) }
}

fn overcounted(secret: &SecretKey, wire: SignedBytes) -> SignedBytes {
    let Ok(receipt) = Signed::<Receipt>::open(wire.clone()) else { return wire };
    let mut receipt = receipt.into_value();
    receipt.usage.output *= OVERCOUNT;
    receipt.cost = receipt.price.cost(receipt.usage).unwrap_or(receipt.cost);
    Signed::sign(receipt, secret).to_wire()
}

/// What somebody with nothing to do would say.
const fn idle_load() -> Load {
    Load { slots_free: 64, pending: 0, running: 0, start_ms: 1, read_us_per_kilo: 1, per_unit_us: 1 }
}
