//! Bytes on the wire: frozen, bounded, and never a panic on what a peer may send.

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use spillway_ledger::{CodecError, Digest, JobId, PublicKey, SecretKey, Signature, SignedBytes};
use spillway_protocol::wire::{CHUNK_BYTES_MAX, FRAME_BYTES_MAX};
use spillway_protocol::{Abort, Frame, Kind, OpenJob, Refusal};

fn signed(byte: u8) -> SignedBytes {
    let signer: PublicKey = SecretKey::from_bytes(&[7; 32]).public();
    SignedBytes { signer, signature: Signature::from_bytes([byte; 64]), document: vec![byte; 3] }
}

fn every_frame() -> Vec<Frame> {
    let open = OpenJob {
        job: JobId([1; 16]),
        leg: 2,
        model: "guide".into(),
        kind: Kind::Completion,
        body: b"{}".to_vec(),
        prefix: b"so far".to_vec(),
        output_max: 99,
        quote: signed(3),
        voucher: signed(4),
    };
    vec![
        Frame::Open(open),
        Frame::Accepted,
        Frame::Refused { refusal: Refusal::Busy, retry_after_ms: 1_000 },
        Frame::Chunk { sequence: 5, offset: 6, bytes: b"text".to_vec() },
        Frame::Alive { held: 9 },
        Frame::Voucher(signed(5)),
        Frame::Cancel,
        Frame::Done { finish: "stop".into(), receipt: signed(6) },
        Frame::Aborted { abort: Abort::Unpaid, receipt: None },
        Frame::Rejected { status: 400, message: "no".into() },
        Frame::CoSigned(Signature::from_bytes([8; 64])),
    ]
}

/// The digest of all frames' bytes: a change here is a new protocol version, and `JOB_PROTOCOL` must say so.
#[test]
fn bytes_on_the_wire_are_frozen() {
    let wire: Vec<u8> = every_frame().iter().flat_map(Frame::to_wire).collect();
    assert_eq!(hex::encode(Frame::Accepted.to_wire()), "0400000001000000");
    assert_eq!(
        hex::encode(Frame::Chunk { sequence: 5, offset: 6, bytes: b"text".to_vec() }.to_wire()),
        "1c000000030000000500000006000000000000000400000000000000".to_owned() + "74657874"
    );
    assert_eq!(Digest::of("test", &[&wire]).to_string(), FROZEN);
}

const FROZEN: &str = "f4f81f8c90eb67634b2987bc23cc32adb61b001d7acb0caa8d3cdb76e641202c";

#[test]
fn frames_come_back_as_they_were() {
    for frame in every_frame() {
        let wire = frame.to_wire();
        let length = Frame::length(wire[..4].try_into().expect("four")).expect("within limits");
        assert_eq!(length, wire.len() - 4);
        assert_eq!(Frame::from_wire(&wire[4..]), Ok(frame));
    }
}

#[test]
fn an_overlong_frame_is_refused_by_its_length_alone() {
    for length in [FRAME_BYTES_MAX + 1, u32::MAX as usize] {
        let prefix = u32::try_from(length).expect("fits").to_le_bytes();
        assert_eq!(Frame::length(prefix), Err(CodecError::TooLong { max: FRAME_BYTES_MAX, got: length }));
    }
    assert_eq!(Frame::length(u32::try_from(FRAME_BYTES_MAX).expect("fits").to_le_bytes()), Ok(FRAME_BYTES_MAX));
}

#[test]
fn a_truncated_frame_is_malformed_at_every_cut() {
    for frame in every_frame() {
        let wire = frame.to_wire();
        for cut in 4..wire.len() {
            assert_eq!(Frame::from_wire(&wire[4..cut]), Err(CodecError::Malformed), "{frame:?} cut at {cut}");
        }
        let longer = [&wire[4..], &[0]].concat();
        assert_eq!(Frame::from_wire(&longer), Err(CodecError::Malformed), "{frame:?} with a byte too many");
    }
}

#[test]
fn a_field_above_its_limit_is_named() {
    let chunk = Frame::Chunk { sequence: 0, offset: 0, bytes: vec![0; CHUNK_BYTES_MAX + 1] };
    let finish = Frame::Done { finish: "x".repeat(33), receipt: signed(1) };
    let status = Frame::Rejected { status: 200, message: String::new() };
    let cases = [(chunk, "bytes: over 256 KiB"), (finish, "finish: over 32 bytes"), (status, "status: not 400 to 499")];
    for (frame, why) in cases {
        assert_eq!(Frame::from_wire(&frame.to_wire()[4..]), Err(CodecError::NotCanonical(why)));
    }
}

#[test]
fn a_hostile_length_inside_a_frame_allocates_nothing() {
    // A chunk that says it holds 2^60 bytes.
    let mut wire = hex::decode("030000000000000000000000000000000000000000000010").expect("hex");
    assert_eq!(Frame::from_wire(&wire), Err(CodecError::Malformed));
    wire.extend([0; 64]);
    assert_eq!(Frame::from_wire(&wire), Err(CodecError::Malformed));
}

#[test]
fn no_bytes_make_a_frame_panic() {
    for seed in 0..2_000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = vec![0; rng.random_range(0..512)];
        rng.fill_bytes(&mut bytes);
        let _ = Frame::from_wire(&bytes);
        let mut tagged = vec![rng.random_range(0..16), 0, 0, 0];
        tagged.extend(bytes);
        if let Ok(frame) = Frame::from_wire(&tagged) {
            assert_eq!(frame.to_wire()[4..], tagged[..], "one frame, one encoding; seed {seed}");
        }
    }
}
