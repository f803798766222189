//! The event log: what each peer was told, boiled down to a hash, or to a line for people.
//! Invariant: two runs have the same hash only if every peer was told the same, at the same time, in the same order.

use crate::network::HostId;
use spillway_ledger::encode;
use spillway_protocol::{BackendError, Event, Now, StreamId};
use std::fmt::Debug;

/// Most of an event that is shown to people, in bytes.
const BRIEF_MAX: usize = 1600;

/// Adds an event to the log.
pub fn note(log: &mut blake3::Hasher, now: Now, host: HostId, event: &Event) {
    let mut line = Line(Vec::with_capacity(64));
    line.number(now.0);
    line.number(host as u64);
    line.event(event);
    log.update(&(line.0.len() as u64).to_le_bytes()).update(&line.0);
}

/// A thing on one line: lists of bytes as their length, the rest cut if it is long.
pub fn brief(thing: &impl Debug) -> String {
    let full = format!("{thing:?}");
    let mut text = String::new();
    let mut rest = full.as_str();
    while let Some((before, list)) = rest.split_once('[') {
        text.push_str(before);
        let (inside, after) = list.split_once(']').unwrap_or((list, ""));
        let is_bytes = inside.bytes().all(|byte| byte.is_ascii_digit() || byte == b',' || byte == b' ');
        if is_bytes {
            text.push_str(&format!("[{} bytes]", if inside.is_empty() { 0 } else { inside.matches(',').count() + 1 }));
            rest = after;
        } else {
            text.push('[');
            rest = list;
        }
    }
    text.push_str(rest);
    if text.len() > BRIEF_MAX {
        let end = (0..=BRIEF_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

struct Line(Vec<u8>);

impl Line {
    fn tag(&mut self, tag: u8) {
        self.0.push(tag);
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn stream(&mut self, stream: &StreamId) {
        match stream {
            StreamId::Out(number) => self.number(number * 2),
            StreamId::In(number) => self.number(number * 2 + 1),
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Submit(job) => {
                self.tag(0);
                self.bytes(&job.id.0);
                self.bytes(&job.body);
                self.number(job.output_max);
            }
            Event::ClientLeft(job) => {
                self.tag(1);
                self.bytes(&job.0);
            }
            Event::Capacity(models) => {
                self.tag(2);
                for model in models {
                    self.bytes(model.model.as_bytes());
                    self.number(u64::from(model.slots) * 2 + u64::from(model.healthy));
                }
            }
            Event::Addresses(addresses) => {
                self.tag(3);
                for address in addresses {
                    self.bytes(address.as_bytes());
                }
            }
            Event::Output { work, bytes, text: _ } => {
                self.tag(4);
                self.number(work.0);
                self.bytes(bytes);
            }
            Event::Charged { work, cost } => {
                self.tag(21);
                self.number(work.0);
                self.number(cost.micro());
            }
            Event::Finished { work, finish } => {
                self.tag(5);
                self.number(work.0);
                self.bytes(finish.as_bytes());
            }
            Event::BackendFailed { work, error } => {
                self.tag(6);
                self.number(work.0);
                match error {
                    BackendError::Rejected { status, message } => {
                        self.number(u64::from(*status));
                        self.bytes(message.as_bytes());
                    }
                    BackendError::Busy { .. } => self.tag(1),
                    BackendError::Answered { status, message, .. } => {
                        self.tag(2);
                        self.number(u64::from(*status));
                        self.bytes(message.as_bytes());
                    }
                    BackendError::Failed(why) => self.bytes(why.as_bytes()),
                }
            }
            Event::StreamOpened(stream) => {
                self.tag(7);
                self.stream(stream);
            }
            Event::FrameReceived { stream, peer, frame, text: _ } => {
                self.tag(8);
                self.stream(stream);
                self.bytes(peer.0.as_bytes());
                self.bytes(&encode(frame));
            }
            Event::StreamClosed(stream) => {
                self.tag(9);
                self.stream(stream);
            }
            Event::ProbeReceived { probe, peer, request } => {
                self.tag(10);
                self.number(probe.0);
                self.bytes(peer.0.as_bytes());
                self.bytes(&encode(request));
            }
            Event::ProbeReplied { probe, reply } => {
                self.tag(11);
                self.number(probe.0);
                if let Some(reply) = reply {
                    self.bytes(&encode(reply));
                }
            }
            Event::OfferReceived(offer) => {
                self.tag(12);
                self.bytes(offer.bytes());
            }
            Event::OfferHeld { offer, until_ms } => {
                self.tag(19);
                self.bytes(offer.bytes());
                self.number(*until_ms);
            }
            Event::PeerLost(peer) => {
                self.tag(13);
                self.bytes(peer.0.as_bytes());
            }
            Event::SessionOpened { session, business, deposit, .. } => {
                self.tag(14);
                self.bytes(session.0.as_bytes());
                self.bytes(business);
                self.number(deposit.micro());
            }
            Event::SessionSettled { session, settled, closed } => {
                self.tag(15);
                self.bytes(session.0.as_bytes());
                self.number(settled.micro());
                self.tag(u8::from(*closed));
            }
            Event::EntryRefused { business, why } => {
                self.tag(16);
                self.bytes(business);
                self.bytes(why.as_bytes());
            }
            Event::Balance(balance) => {
                self.tag(17);
                self.number(balance.micro());
            }
            Event::Tick => self.tag(18),
            Event::RoundTrip { peer, rtt } => {
                self.tag(20);
                self.bytes(peer.0.as_bytes());
                self.number(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
            }
            Event::SessionToppedUp { session, deposit } => {
                self.tag(19);
                self.bytes(session.0.as_bytes());
                self.number(deposit.micro());
            }
        }
    }
}
