//! Bytes on the wire: frozen, bounded, and never a panic on what a peer may send.

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use spillway_ledger::{
    CodecError, Digest, JobId, NetworkId, PublicKey, SecretKey, Signature, SignedBytes, decode, encode,
};
use spillway_protocol::wire::{CHUNK_BYTES_MAX, FRAME_BYTES_MAX};
use spillway_protocol::{Abort, Frame, HotPrefix, Kind, Load, OpenJob, Probe, ProbeReply, Refusal};

fn signed(byte: u8) -> SignedBytes {
    let signer: PublicKey = SecretKey::from_bytes(&[7; 32]).public();
    SignedBytes { signer, signature: Signature::from_bytes([byte; 64]), document: vec![byte; 3] }
}

const LOAD: Load = Load { slots_free: 1, pending: 2, running: 3, start_ms: 4, read_us_per_kilo: 5, per_unit_us: 6 };

fn probe() -> Probe {
    Probe {
        network: NetworkId(Digest::from_bytes([9; 32])),
        model: "guide".into(),
        kind: Kind::Chat,
        prompt_units: 5_000,
        output_max: 99,
        window_max: 1_024,
        prefix: vec![0x0102_0304_0506_0708, 2],
    }
}

fn probe_reply() -> ProbeReply {
    let hot = vec![HotPrefix { name: 0x0102_0304_0506_0708, units: 2_048 }];
    ProbeReply { load: LOAD, cached_units: 2_048, hot, retry_after_ms: 70, quote: Ok(signed(7)) }
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
        continuable: true,
        quote: signed(3),
        voucher: signed(4),
    };
    vec![
        Frame::Open(open),
        Frame::Accepted { load: LOAD },
        Frame::Refused { refusal: Refusal::Busy, retry_after_ms: 1_000, load: LOAD },
        Frame::Chunk { sequence: 5, offset: 6, bytes: b"text".to_vec() },
        Frame::Alive { held: 9 },
        Frame::Voucher(signed(5)),
        Frame::Cancel,
        Frame::Done { finish: "stop".into(), receipt: signed(6), load: LOAD },
        Frame::Aborted { abort: Abort::Unpaid, receipt: None },
        Frame::Rejected { status: 400, message: "no".into() },
        Frame::CoSigned(Signature::from_bytes([8; 64])),
    ]
}

/// The digest of all frames' bytes: a change here is a new protocol version, and `JOB_PROTOCOL` must say so.
#[test]
fn bytes_on_the_wire_are_frozen() {
    let wire: Vec<u8> = every_frame().iter().flat_map(Frame::to_wire).collect();
    assert_eq!(
        hex::encode(Frame::Accepted { load: LOAD }.to_wire()),
        "1c00000001000000".to_owned() + "010000000200000003000000040000000500000006000000"
    );
    assert_eq!(
        hex::encode(Frame::Chunk { sequence: 5, offset: 6, bytes: b"text".to_vec() }.to_wire()),
        "1c000000030000000500000006000000000000000400000000000000".to_owned() + "74657874"
    );
    assert_eq!(Digest::of("test", &[&wire]).to_string(), FROZEN);
}

#[test]
fn probes_are_frozen_and_bounded() {
    let (asked, said) = (encode(&probe()), encode(&probe_reply()));
    assert_eq!(Digest::of("test", &[&asked, &said]).to_string(), PROBES_FROZEN);
    assert_eq!(decode::<Probe>(&asked), Ok(probe()));
    assert_eq!(decode::<ProbeReply>(&said), Ok(probe_reply()));
    for cut in 0..asked.len() {
        assert_eq!(decode::<Probe>(&asked[..cut]), Err(CodecError::Malformed));
    }
    // The longest that is allowed fits, and one more of anything does not.
    let most = Probe { model: "m".repeat(256), prefix: vec![1; 64], ..probe() };
    assert_eq!(decode(&encode(&most)), Ok(most.clone()));
    let more = Probe { prefix: vec![1; 65], ..probe() };
    assert_eq!(decode::<Probe>(&encode(&more)), Err(CodecError::NotCanonical("prefix: more than 64 names")));
    let hot = |count| ProbeReply { hot: vec![HotPrefix { name: 1, units: 1 }; count], ..probe_reply() };
    assert_eq!(decode(&encode(&hot(16))), Ok(hot(16)));
    assert_eq!(decode::<ProbeReply>(&encode(&hot(17))), Err(CodecError::NotCanonical("hot: more than 16 prefixes")));
    // A prefix that says it holds 2^60 names.
    let at = asked.len() - 3 * 8;
    let hostile = [&asked[..at], &(1_u64 << 60).to_le_bytes(), &[0; 64]].concat();
    assert_eq!(decode::<Probe>(&hostile), Err(CodecError::Malformed));
    let long = vec![0; 1025];
    assert_eq!(decode::<Probe>(&long), Err(CodecError::TooLong { max: 1024, got: 1025 }));
}

const PROBES_FROZEN: &str = "e036abd7221390ba96df4934108941689ad0cf6bf271260d31cb68e7bdb23f26";
const FROZEN: &str = "37691a1d6e32d7672a45d87e3b6ceb9a6c7d821686170892e1714b8c46ad705b";

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
    let finish = Frame::Done { finish: "x".repeat(33), receipt: signed(1), load: LOAD };
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
