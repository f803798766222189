//! What messages cost on the wire beyond their own bytes. The machines' messages are real; these are the only assumptions.
//! Invariant: each figure has its derivation beside it.

/// A gossiped message beside its data: gossipsub's protobuf with author (40), sequence (10), topic (38), signature (66)
/// and framing (8), and a share of QUIC, UDP and IP headers (58).
pub(super) const GOSSIP_ENVELOPE: u64 = 220;
/// Each way of a call on an own QUIC stream: the protocol's name twice (40), the length before the message (4), and an
/// acknowledgement (45).
const CALL_ENVELOPE: u64 = 89;
/// Headers of a packet: QUIC's, with its authentication tag (30), UDP and IP (28).
const PACKET_HEADERS: u64 = 58;
/// What fits into a packet.
const PACKET_BYTES: u64 = 1200;
/// A connection that is made for one call, each way: a handshake with both certificates, `identify`, closing.
pub(super) const DIAL: u64 = 5_000;
/// Finding the address of a peer that is not connected: about seven questions, each answered with twenty peers.
pub(super) const LOOKUP_SENT: u64 = 1_000;
/// The answers to those.
pub(super) const LOOKUP_RECEIVED: u64 = 11_000;
/// An idle connection, both ways, a minute; measured with the shipped settings.
pub(super) const IDLE_PER_MINUTE: u64 = 2_300;

/// One way of a call.
pub(super) const fn call(bytes: usize) -> u64 {
    let bytes = bytes as u64 + CALL_ENVELOPE;
    bytes + bytes.div_ceil(PACKET_BYTES) * PACKET_HEADERS
}
