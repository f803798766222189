//! Bytes from people who mean harm: forged, weak, cut short, made long.

use super::*;

/// Every encoding of a point of small order that the curve library reads, some not canonical.
const SMALL_ORDER: [&str; 11] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

fn bytes32(hex: &str) -> [u8; 32] {
    hex::decode(hex).expect("hex").try_into().expect("32 bytes")
}

/// The neutral point as a public key: decoded from the wire, which does not check it.
fn weak_key() -> PublicKey {
    wincode::deserialize_exact(&bytes32(SMALL_ORDER[2])).expect("any 32 bytes decode")
}

pub(super) fn weak_account() -> Account {
    Account(weak_key())
}

/// A forgery that anyone can make: the neutral point as key and as R, and s = 0.
pub(super) fn forged_by_weak_key(document: &[u8]) -> SignedBytes {
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&bytes32(SMALL_ORDER[2]));
    SignedBytes { signer: weak_key(), signature: Signature::from_bytes(signature), document: document.to_vec() }
}

fn voucher() -> Signed<Voucher> {
    let cast = cast();
    Signed::sign(cast.voucher(cast.session(0), 300), &cast.voucher_key)
}

#[test]
fn weak_keys_are_refused_wherever_they_come_from() {
    for text in SMALL_ORDER {
        let bytes = bytes32(text);
        assert!(PublicKey::from_bytes(&bytes).is_err(), "{text}");
        assert!(text.parse::<Account>().is_err(), "{text}");
        let decoded: PublicKey = wincode::deserialize_exact(&bytes).expect("any 32 bytes decode");
        assert!(!decoded.is_strong(), "{text}");
    }
}

#[test]
fn the_forgery_that_looser_checks_accept_is_refused() {
    use ed25519_dalek::Verifier;
    let wire = forged_by_weak_key(voucher().bytes());
    // The forgery is real: it passes the check that this project never uses.
    let loose = ed25519_dalek::VerifyingKey::from_bytes(wire.signer.as_bytes()).expect("a point");
    let signature = ed25519_dalek::Signature::from_bytes(wire.signature.as_bytes());
    assert!(loose.verify(b"any message at all", &signature).is_ok());

    assert!(!wire.signer.verify(Voucher::DOMAIN, &wire.document, &wire.signature));
    assert_eq!(Signed::<Voucher>::open(wire), Err(SignedError::WeakKey));
}

#[test]
fn second_names_of_a_key_are_refused() {
    let mut points = 0;
    // y from p up to 2²⁵⁵ - 1 is read as y - p, with either sign of x.
    for low in 0xed..=0xff_u8 {
        for high in [0x7f, 0xff] {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (low, high);
            assert!(PublicKey::from_bytes(&bytes).is_err(), "{low:x} {high:x}");
            let loose = ed25519_dalek::VerifyingKey::from_bytes(&bytes);
            points += usize::from(loose.is_ok_and(|key| !key.is_weak()));
        }
    }
    assert!(points > 0, "the curve library takes some of them for good keys");
}

/// Even the owner of a good key cannot make a signature that strict and loose nodes would disagree about.
#[test]
fn a_signature_with_a_point_of_small_order_is_refused() {
    use ed25519_dalek::Verifier;
    // R is the neutral point, s = k·a for the secret scalar a of key(1); computed apart from this project.
    let bytes: [u8; 64] = hex::decode(
        "0100000000000000000000000000000000000000000000000000000000000000\
         569451d5f2e27b3050474f0e63b4d5e1ebc3c9cd289bc8050b8cf85ecd49e40a",
    )
    .expect("hex")
    .try_into()
    .expect("64 bytes");
    let key = key(1).public();
    let loose = ed25519_dalek::VerifyingKey::from_bytes(key.as_bytes()).expect("a key");
    assert!(loose.verify(b"a/1\0text", &ed25519_dalek::Signature::from_bytes(&bytes)).is_ok(), "loosely, it holds");
    assert!(!key.verify("a/1", b"text", &Signature::from_bytes(bytes)));
}

#[test]
fn a_signature_holds_for_one_key_domain_and_text_only() {
    let (key, other) = (key(1), key(2));
    let signature = key.sign("a/1", b"text");
    let cases: [(&SecretKey, &str, &[u8], bool); 6] = [
        (&key, "a/1", b"text", true),
        (&other, "a/1", b"text", false),
        (&key, "a/2", b"text", false),
        (&key, "a/1", b"texts", false),
        (&key, "a/1", b"", false),
        (&key, "a", b"/1\0text", false),
    ];
    for (key, domain, text, want) in cases {
        assert_eq!(key.public().verify(domain, text, &signature), want, "{domain} {text:?}");
    }
}

#[test]
fn no_flipped_bit_is_ever_accepted() {
    let signed = voucher();
    let good = signed.to_bytes();
    assert_eq!(Signed::<Voucher>::from_bytes(&good).as_ref(), Ok(&signed));
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(Signed::<Voucher>::from_bytes(&bad).is_err(), "byte {at} bit {bit}");
        }
    }
}

/// A document's name, its bytes, and what says whether bytes are one.
type Readable = (&'static str, Vec<u8>, fn(&[u8]) -> bool);

#[test]
fn every_document_cut_short_or_made_longer_is_refused() {
    let cast = cast();
    let entry = cast.settle(0, cast.session(0), 300, 200, true);
    let block = wire::example_block(&cast);
    let documents: [Readable; 5] = [
        ("voucher", voucher().to_bytes(), |bytes| Signed::<Voucher>::from_bytes(bytes).is_ok()),
        ("entry", entry.to_bytes(), |bytes| Signed::<Entry>::from_bytes(bytes).is_ok()),
        ("receipt", wire::example_co_signed(&cast).to_bytes(), |bytes| CoSigned::from_bytes(bytes).is_ok()),
        ("block", block.to_bytes(), |bytes| CertifiedBlock::from_bytes(bytes).is_ok()),
        ("header", encode(&block.block.header), |bytes| decode::<Header>(bytes).is_ok()),
    ];
    for (name, good, accepts) in documents {
        assert!(accepts(&good), "{name}");
        for length in 0..good.len() {
            assert!(!accepts(&good[..length]), "{name} cut to {length}");
        }
        for extra in [0_u8, 1, 0xff] {
            let mut long = good.clone();
            long.push(extra);
            assert!(!accepts(&long), "{name} with {extra} after it");
        }
    }
}

#[test]
fn absurd_lengths_are_refused_without_memory_for_them() {
    let before = peak_kib();
    let lengths = [4 << 20, u64::from(u32::MAX), 1 << 36, 1 << 48, u64::MAX / 120, u64::MAX - 7, u64::MAX];
    for length in lengths {
        // A signed document that claims to be this long, and a block of this many entries or signatures.
        let mut envelope = voucher().to_bytes();
        envelope[96..104].copy_from_slice(&length.to_le_bytes());
        assert_eq!(Signed::<Voucher>::from_bytes(&envelope), Err(SignedError::Malformed), "{length}");

        let mut block = wire::example_block(&cast()).to_bytes();
        let header = Header::BYTES_MAX;
        block[header..header + 8].copy_from_slice(&length.to_le_bytes());
        assert_eq!(CertifiedBlock::from_bytes(&block), Err(CodecError::Malformed), "{length}");

        let mut receipt = wire::example_co_signed(&cast()).provider().bytes().to_vec();
        receipt[84..92].copy_from_slice(&length.to_le_bytes());
        assert_eq!(decode::<Receipt>(&receipt), Err(CodecError::Malformed), "{length}");
    }
    assert!(peak_kib() - before < 1 << 20, "less than a gibibyte was ever asked for");
}

/// The most address space this process ever had, in KiB; 0 where the system does not say.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

#[test]
fn documents_that_break_their_own_rules_are_refused() {
    let cast = cast();
    let mint = |reference: &str| Action::Mint {
        to: cast.consumer.account(),
        amount: Credits::new(1),
        reference: reference.to_owned(),
    };
    let receipt = wire::example_co_signed(&cast).receipt().clone();
    let entry = |action| encode(&cast.entry(&cast.issuer, 0, action));
    let mut long_voucher = voucher().to_wire();
    long_voucher.document.push(0);
    let bad_reference = CodecError::NotCanonical("reference must be 1 to 64 printable ASCII characters");
    let long = CodecError::NotCanonical("voucher is longer than a voucher can be");

    let entries = [
        (entry(mint("ok")), Ok(())),
        (entry(mint(&"x".repeat(64))), Ok(())),
        (entry(mint("")), Err(bad_reference)),
        (entry(mint(&"x".repeat(65))), Err(bad_reference)),
        (entry(mint("line\nbreak")), Err(bad_reference)),
        (entry(mint("é")), Err(bad_reference)),
        (entry(cast.settle_action(long_voucher, 1, false)), Err(long)),
        (vec![0; Entry::BYTES_MAX + 1], Err(CodecError::TooLong { max: 2_560, got: 2_561 })),
    ];
    for (bytes, want) in entries {
        assert_eq!(decode::<Entry>(&bytes).map(|_| ()), want);
    }
    let cases = [
        (Receipt { model: "m".repeat(257), ..receipt.clone() }, "model is longer than 256 bytes"),
        (Receipt { kind: "k".repeat(33), ..receipt.clone() }, "kind is longer than 32 bytes"),
        (Receipt { finish: "f".repeat(33), ..receipt.clone() }, "finish is longer than 32 bytes"),
    ];
    for (receipt, rule) in cases {
        assert_eq!(decode::<Receipt>(&encode(&receipt)), Err(CodecError::NotCanonical(rule)));
        assert_eq!(Signed::try_sign(receipt, &cast.provider), Err(CodecError::NotCanonical(rule)));
    }
    // A flag that is neither 0 nor 1, and an action that does not exist.
    let mut settle = entry(cast.settle_action(voucher().to_wire(), 1, false));
    *settle.last_mut().expect("not empty") = 2;
    assert_eq!(decode::<Entry>(&settle), Err(CodecError::Malformed));
    let mut action = entry(mint("ok"));
    action[96] = 5;
    assert_eq!(decode::<Entry>(&action), Err(CodecError::Malformed));
}

#[test]
fn co_signed_receipts_need_both_halves() {
    let cast = cast();
    let good = wire::example_co_signed(&cast);
    let receipt = good.provider().clone();
    let (consumer, signature) = good.consumer();
    assert!(good.verify(&cast.provider.public(), &cast.consumer.public()));
    assert!(!good.verify(&cast.consumer.public(), &cast.provider.public()));
    assert_eq!(CoSigned::join(receipt.clone(), consumer, signature), Ok(good));

    // The provider's own signature is no consent, nor is one under the provider's domain.
    let own = *receipt.signature();
    assert_eq!(CoSigned::join(receipt.clone(), receipt.signer(), own), Err(SignedError::BadSignature));
    let wrong_domain = cast.consumer.sign(Receipt::DOMAIN, receipt.bytes());
    assert_eq!(CoSigned::join(receipt.clone(), consumer, wrong_domain), Err(SignedError::BadSignature));
    assert_eq!(CoSigned::join(receipt, weak_key(), signature), Err(SignedError::WeakKey));
}

#[test]
fn keys_and_ids_are_read_strictly_and_secrets_never_shown() {
    let account = key(1).account();
    assert_eq!(account.to_string().parse(), Ok(account));
    assert_eq!(serde_json::from_str::<Account>(&format!("\"{account}\"")).expect("hex"), account);
    let job = JobId([0xab; 16]);
    assert_eq!(job.to_string().parse(), Ok(job));
    for bad in ["", "00", &"zz".repeat(32), &format!("{account}00"), &format!("0x{account}")[..64]] {
        assert_eq!(bad.parse::<Account>(), Err(KeyError::NotHex { digits: 64 }), "{bad}");
    }
    let secret = SecretKey::generate([0x5a; 32]);
    assert!(!format!("{secret:?}").contains(&"5a".repeat(8)));
    assert_eq!(SecretKey::from_bytes(&secret.to_bytes()).public(), secret.public());
}

#[test]
fn genesis_names_the_field_that_is_wrong() {
    let good = cast().genesis;
    assert_eq!(good.validate(), Ok(()));
    let change = |change: &dyn Fn(&mut Genesis)| {
        let mut genesis = good.clone();
        change(&mut genesis);
        genesis.validate().expect_err("wrong").field
    };
    let weak = weak_account();
    let cases = [
        ("name", change(&|g| g.name = String::new())),
        ("name", change(&|g| g.name = "x".repeat(65))),
        ("name", change(&|g| g.name = "tab\t".to_owned())),
        ("issuer", change(&|g| g.issuer = weak)),
        ("committee", change(&|g| g.committee = vec![weak.0])),
        ("committee", change(&|g| g.committee = Vec::new())),
        ("committee", change(&|g| g.committee = vec![key(1).public(); 2])),
        ("unbond_ms", change(&|g| g.unbond_ms = genesis::UNBOND_MS_MAX + 1)),
        ("treasury", change(&|g| g.treasury = weak)),
        ("validators", change(&|g| g.validators = weak)),
        ("grace_ms", change(&|g| g.grace_ms = u64::MAX)),
        ("mint_max_per_epoch", change(&|g| g.mint_max_per_epoch = Credits::ZERO)),
        ("epoch_blocks", change(&|g| g.epoch_blocks = 0)),
        ("bootstrap", change(&|g| g.bootstrap = vec!["a".to_owned(); 65])),
        ("bootstrap", change(&|g| g.bootstrap = vec![String::new()])),
    ];
    for (want, got) in cases {
        assert_eq!(got, want);
    }
    let json = serde_json::to_string(&good).expect("JSON");
    assert_eq!(serde_json::from_str::<Genesis>(&json).expect("JSON"), good);
    let unknown = json.replacen("{", "{\"extra\":1,", 1);
    assert!(serde_json::from_str::<Genesis>(&unknown).is_err(), "a misspelt field is noticed");

    let moved = Genesis { bootstrap: Vec::new(), ..good.clone() };
    assert_eq!(moved.network_id(), good.network_id(), "where one first knocks is not what one joins");
    let other = Genesis { grace_ms: 1, ..good.clone() };
    assert_ne!(other.network_id(), good.network_id());
}
