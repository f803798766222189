"""Reads and checks everything that the ledger signs, hashes or proves, without any of the ledger's code.

A second implementation of the formats in docs/ledger.md, to be read beside it. `scripts/formats.sh` runs it over the
frozen vectors: each is decoded, encoded again to the same bytes, its signatures, digests and ids are checked, and every
altered copy must be refused. It needs `cryptography` (the Ed25519 equation) and `blake3`.

It does not execute entries: that a header's state_root follows from its entries only a replay shows.
"""

import json
import re
import sys
from functools import lru_cache

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class Refused(Exception):
    """The bytes are not what they are said to be; the text says why."""


def need(holds, why):
    if not holds:
        raise Refused(why)


# --- Bytes: bincode version 1, fixed-size integers, little-endian ---------------------------------------------------
#
# A format is a pair of functions: read(bytes, at) -> (value, next place), and write(value) -> bytes.


def take(data, at, count):
    need(count <= len(data) - at, "cut short")
    return data[at : at + count], at + count


def integer(size):
    def read(data, at):
        raw, at = take(data, at, size)
        return int.from_bytes(raw, "little"), at

    return read, lambda value: value.to_bytes(size, "little")


def fixed(size):
    return (lambda data, at: take(data, at, size)), lambda value: value


def read_bool(data, at):
    raw, at = take(data, at, 1)
    need(raw[0] < 2, "a flag is 0 or 1")
    return raw[0] == 1, at


def read_blob(data, at):
    length, at = U64[0](data, at)
    return take(data, at, length)


def read_text(data, at):
    raw, at = read_blob(data, at)
    try:
        return raw.decode("utf-8"), at
    except UnicodeDecodeError:
        raise Refused("text is not UTF-8") from None


def read_all_text(data, at):
    return read_text(U64[1](len(data) - at) + data[at:], 0)[0], len(data)


def listed(element):
    def read(data, at):
        count, at = U64[0](data, at)
        need(count <= len(data) - at, "cut short")  # No element takes less than a byte.
        values = []
        for _ in range(count):
            value, at = element[0](data, at)
            values.append(value)
        return values, at

    return read, lambda values: U64[1](len(values)) + b"".join(map(element[1], values))


def option(inner):
    def read(data, at):
        there, at = read_bool(data, at)
        return inner[0](data, at) if there else (None, at)

    return read, lambda value: b"\0" if value is None else b"\1" + inner[1](value)


def struct(**fields):
    """Fields one after the other, nothing between them."""

    def read(data, at):
        value = {}
        for name, (read_field, _) in fields.items():
            value[name], at = read_field(data, at)
        return value, at

    return read, lambda value: b"".join(write(value[name]) for name, (_, write) in fields.items())


def enum(**variants):
    """A 32-bit number of the variant, from 0, then its fields. Read as a pair of its name and a dict."""
    names = list(variants)

    def read(data, at):
        tag, at = U32[0](data, at)
        need(tag < len(names), "no such variant")
        value, at = variants[names[tag]][0](data, at)
        return (names[tag], value), at

    return read, lambda value: U32[1](names.index(value[0])) + variants[value[0]][1](value[1])


U32, U64 = integer(4), integer(8)
BOOL = (read_bool, lambda value: bytes([value]))
BLOB = (read_blob, lambda value: U64[1](len(value)) + value)
TEXT = (read_text, lambda value: BLOB[1](value.encode()))
BYTES16, DIGEST, KEY, SIGNATURE = fixed(16), fixed(32), fixed(32), fixed(64)


def decode(kind, data):
    """Size first, then format, then that these bytes are the one encoding, then the document's own rules."""
    limit, form, rules = kind
    need(len(data) <= limit, "longer than its kind can be")
    value, end = form[0](data, 0)
    need(end == len(data), "more bytes follow")
    need(form[1](value) == data, "not the one encoding")
    rules(value)
    return value


# --- Documents: the limit in bytes, the format, the rules that the format does not enforce ---------------------------


def no_rules(_value):
    pass


def receipt_rules(receipt):
    for field, limit in (("model", 256), ("kind", 32), ("finish", 32)):
        need(len(receipt[field].encode()) <= limit, f"{field} is too long")


def entry_rules(entry):
    action, value = entry["action"]
    if "reference" in value:
        need(re.fullmatch(r"[\x20-\x7e]{1,64}", value["reference"]), "reference: 1 to 64 printable ASCII characters")
    if action == "Settle":
        need(len(value["voucher"]["document"]) <= VOUCHER[0], "voucher is too long")
    if action == "Close":
        need(len(value["closing"]["document"]) <= CLOSING[0], "closing is too long")
    if action == "Evidence":
        kind, pair = value["evidence"]
        limit = {"Votes": VOTE, "Proposals": PROPOSAL, "Receipts": RECEIPT}[kind][0]
        need(all(len(one["document"]) <= limit for one in pair.values()), "evidence is too long")


def strictly_sorted(keys):
    return all(a < b for a, b in zip(keys, keys[1:]))


def committee_rules(keys):
    need(1 <= len(keys) <= 128 and strictly_sorted(keys), "a committee is 1 to 128 keys, strictly sorted")


def certificate_rules(certificate):
    need(len(certificate["signatures"]) <= 128, "at most 128 signatures")


def block_rules(certified):
    entries, certificate = certified["block"]["entries"], certified["certificate"]
    need(len(entries) <= 1024, "at most 1024 entries")
    need(all(len(entry["document"]) <= ENTRY[0] for entry in entries), "an entry is too long")
    certificate_rules(certificate)
    need(strictly_sorted([one["key"] for one in certificate["signatures"]]), "signatures are strictly sorted by key")


def proof_rules(proof):
    kind, value = proof
    anchor = value["anchor"]
    need(len(anchor["genesis"].encode()) <= 64 << 10, "genesis is too long")
    need(len(anchor["handovers"]) <= 1024, "too many handovers")
    for handover in anchor["handovers"]:
        certificate_rules(handover["certificate"])
        committee_rules(handover["next"])
    certificate_rules(anchor["certificate"])
    if kind == "Account":
        path = value["account"]
        need(len(path["beside"]) <= 40 and path["slot"] >> len(path["beside"]) == 0, "slot lies outside the tree")
    else:
        need(len(value["entry"]["document"]) <= ENTRY[0], "entry is too long")
        need(len(value["receipt"]) <= 104 + RECEIPT[0] + 96, "receipt is too long")


SIGNED = struct(signer=KEY, signature=SIGNATURE, document=BLOB)
USAGE = struct(input=U64, cached=U64, output=U64)
PRICE = USAGE  # The same three fields, in micro-credits per million units.

VOUCHER = (96, struct(network=DIGEST, session=DIGEST, sequence=U64, total=U64, input=U64, output=U64), no_rules)
CLOSING = (128, struct(network=DIGEST, session=DIGEST, total=U64, usage=USAGE, receipts=DIGEST), no_rules)
STEP = enum(Prevote=struct(), Precommit=struct())
VOTE = (81, struct(network=DIGEST, height=U64, round=U32, step=STEP, block=option(DIGEST)), no_rules)
PROPOSAL = (81, struct(network=DIGEST, height=U64, round=U32, block=DIGEST, valid_round=option(U32)), no_rules)
RECEIPT = (
    1024,
    struct(
        network=DIGEST, session=DIGEST, job=BYTES16, leg=U32, model=TEXT, weights=DIGEST, kind=TEXT, prompt=DIGEST,
        transcript=DIGEST, usage=USAGE, price=PRICE, cost=U64, first_token_ms=U32, total_ms=U32, finish=TEXT, time_ms=U64,
    ),
    receipt_rules,
)  # fmt: skip
CO_SIGNED = (104 + 1024 + 96, struct(provider=SIGNED, consumer=KEY, signature=SIGNATURE), no_rules)

PAIR = struct(first=SIGNED, second=SIGNED)
ACTION = enum(
    Mint=struct(to=KEY, amount=U64, reference=TEXT),
    Transfer=struct(to=KEY, amount=U64),
    Open=struct(provider=KEY, gateway=KEY, voucher_key=KEY, deposit=U64, price_cap=PRICE, expires_ms=U64),
    Settle=struct(voucher=SIGNED, claim=U64, usage=USAGE, receipts=DIGEST, last=BOOL),
    Refund=struct(session=DIGEST),
    TopUp=struct(session=DIGEST, amount=U64),
    Close=struct(closing=SIGNED),
    Bond=struct(amount=U64),
    Unbond=struct(amount=U64),
    PayoutRequest=struct(amount=U64, payee=DIGEST),
    Burn=struct(payout=DIGEST, reference=TEXT),
    PayoutReject=struct(
        payout=DIGEST,
        reason=enum(UnknownPayee=struct(), Returned=struct(), Compliance=struct(), Withdrawn=struct()),
    ),
    Evidence=struct(evidence=enum(Votes=PAIR, Proposals=PAIR, Receipts=PAIR)),
    Elect=struct(validator=KEY, member=BOOL, at=U64),
)
ENTRY = (
    2560,
    struct(network=DIGEST, account=KEY, nonce=U64, expires_height=U64, business=BYTES16, action=ACTION),
    entry_rules,
)

HEADER = struct(
    height=U64, parent=DIGEST, time_ms=U64, entries_root=DIGEST, state_root=DIGEST, supply=U64, validators=DIGEST,
    next_validators=DIGEST,
)  # fmt: skip
CERTIFICATE = struct(block=DIGEST, round=U32, signatures=listed(struct(key=KEY, signature=SIGNATURE)))
BLOCK = (
    (1 << 20) + 32 + 4 + 8 + 128 * 96,
    struct(block=struct(header=HEADER, entries=listed(SIGNED)), certificate=CERTIFICATE),
    block_rules,
)
COMMITTEE = (8 + 128 * 32, listed(KEY), committee_rules)

NODE = struct(digest=DIGEST, sum=U64)
STATE = struct(
    balance=U64, bond=U64, unbonding=U64, unbonding_due_ms=U64, nonce=U64, open_sessions=U32, payouts=U32
)  # fmt: skip
ACCOUNT_PATH = struct(account=KEY, state=STATE, slot=U64, beside=listed(NODE), locks=NODE, rest=DIGEST)
MERKLE_PATH = struct(index=U64, count=U64, beside=listed(DIGEST))
HANDOVER = struct(header=HEADER, certificate=CERTIFICATE, next=COMMITTEE[1])
ANCHOR = struct(genesis=TEXT, handovers=listed(HANDOVER), header=HEADER, certificate=CERTIFICATE)
PROOF = (
    3 << 20,
    enum(
        Account=struct(anchor=ANCHOR, account=ACCOUNT_PATH),
        Receipt=struct(anchor=ANCHOR, entry=SIGNED, place=MERKLE_PATH, receipt=BLOB, within=MERKLE_PATH),
    ),
    proof_rules,
)
SHARES = ["provider_bp", "gateway_bp", "validators_bp", "treasury_bp"]
SPLIT = struct(**dict.fromkeys(SHARES, U32))
GENESIS = {
    "name": TEXT, "time_ms": U64, "issuer": KEY, "committee": listed(KEY), "treasury": KEY, "validators": KEY,
    "split": SPLIT, "grace_ms": U64, "mint_max_per_epoch": U64, "epoch_blocks": U64, "validator_bond": U64,
    "unbond_ms": U64, "payout_min": U64,
}  # fmt: skip


# --- Digests and Merkle trees ----------------------------------------------------------------------------------------


def digest(domain, *parts):
    """BLAKE3 over the domain and each part, each with its length as a 64-bit number before it."""
    hasher = blake3()
    for part in (domain.encode(), *parts):
        hasher.update(U64[1](len(part)) + part)
    return hasher.digest()


def above(nodes):
    """One or two nodes of a level; a node without a neighbour moves up as it is."""
    return nodes[0] if len(nodes) == 1 else digest("spillway/merkle/node/1", *nodes)


def merkle_root(leaves):
    level = [digest("spillway/merkle/leaf/1", leaf) for leaf in leaves]
    while len(level) > 1:
        level = [above(level[at : at + 2]) for at in range(0, len(level), 2)]
    return digest("spillway/merkle/root/1", U64[1](len(leaves)), level[0] if level else bytes(32))


def check_path(root, leaf, path):
    at, width, beside = path["index"], path["count"], list(path["beside"])
    need(at < width and len(beside) <= 32, "a path leads to a leaf that is there")
    node = digest("spillway/merkle/leaf/1", leaf)
    while width > 1:
        if at % 2 == 1 or at + 1 < width:
            need(beside, "a path has a step for each neighbour")
            other = beside.pop(0)
            node = above([other, node] if at % 2 else [node, other])
        at, width = at // 2, (width + 1) // 2
    need(not beside, "a path has a step for each neighbour, and no more")
    need(digest("spillway/merkle/root/1", U64[1](path["count"]), node) == root, "the path does not lead to the root")


def add(*amounts):
    need(sum(amounts) < 1 << 64, "a sum does not fit")
    return sum(amounts)


def account_leaf(account, state):
    total = add(state["balance"], state["bond"], state["unbonding"])
    return {"digest": digest("spillway/state/account/1", account, STATE[1](state)), "sum": total}


def state_root(path):
    """The state's root and sum that an account's path leads to."""
    node = account_leaf(path["account"], path["state"])
    for depth, beside in enumerate(path["beside"]):
        left, right = (beside, node) if path["slot"] >> depth & 1 else (node, beside)
        total = add(left["sum"], right["sum"])
        parts = (left["digest"], U64[1](left["sum"]), right["digest"], U64[1](right["sum"]))
        node = {"digest": digest("spillway/state/node/1", *parts), "sum": total}
    locks = path["locks"]
    parts = (node["digest"], U64[1](node["sum"]), locks["digest"], U64[1](locks["sum"]), path["rest"])
    return digest("spillway/state/1", *parts), add(node["sum"], locks["sum"])


# --- Signatures: ed25519, strictly -----------------------------------------------------------------------------------
#
# `cryptography` checks the equation without a cofactor and compares R byte by byte. What it lets through is checked
# here: a key or R of small order, a key that is a second name of a point, an s that is not the least.

P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


@lru_cache(maxsize=None)
def strong(point):
    """Whether 32 bytes are the one name of a point that is not of small order."""
    y = int.from_bytes(point, "little") & (1 << 255) - 1
    if y >= P:
        return False
    top, bottom = (y * y - 1) % P, (D * y * y + 1) % P
    x2 = top * pow(bottom, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if x * x % P != x2:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != x2:
        return False
    for _ in range(3):  # Eight times the point is the neutral one, (0, 1), only for a point of small order.
        k = D * x * x * y * y % P
        x, y = 2 * x * y * pow(1 + k, -1, P) % P, (y * y + x * x) * pow(1 - k, -1, P) % P
    return (x, y) != (0, 1)


def signature_holds(domain, document, key, signature):
    """What is signed is the domain, a zero byte, the document."""
    if not strong(key) or not strong(signature[:32]) or int.from_bytes(signature[32:], "little") >= ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, domain.encode() + b"\0" + document)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_signature(domain, document, key, signature):
    need(signature_holds(domain, document, key, signature), f"a signature of {domain} does not hold")


def open_signed(domain, kind, wire):
    """The document in an envelope. The signature comes first: nobody decodes a stranger's bytes for nothing."""
    need(len(wire["document"]) <= kind[0], "longer than its kind can be")
    check_signature(domain, wire["document"], wire["signer"], wire["signature"])
    return decode(kind, wire["document"])


def read_signed(domain, kind, data):
    wire = decode((104 + kind[0], SIGNED, no_rules), data)
    return wire, open_signed(domain, kind, wire)


# --- What the documents mean -----------------------------------------------------------------------------------------


def read_voucher(data):
    return read_signed("spillway/voucher/1", VOUCHER, data)


def read_receipt(data):
    """Signed by the provider, and by the consumer under a domain of its own."""
    both = decode(CO_SIGNED, data)
    receipt = open_signed("spillway/receipt/1", RECEIPT, both["provider"])
    document = both["provider"]["document"]
    check_signature("spillway/receipt/consumer/1", document, both["consumer"], both["signature"])
    return both, receipt


def document_digest(domain, wire):
    """Names a document and its signer, whichever signature it has."""
    return digest(domain, wire["signer"], wire["document"])


def envelope_digest(wire):
    """An entry's leaf under entries_root: its signature counts, too."""
    return digest("spillway/signed/1", wire["signer"], wire["signature"], wire["document"])


def read_entry(data):
    """An entry whose own signature and those inside hold. Returns its envelope, itself, and the offence it shows."""
    wire, entry = read_signed("spillway/entry/1", ENTRY, data)
    need(wire["signer"] == entry["account"], "an entry is signed by its account")
    action, value = entry["action"]
    offence = None
    if action == "Settle":
        voucher = open_signed("spillway/voucher/1", VOUCHER, value["voucher"])
        need(voucher["network"] == entry["network"], "the voucher is for another network")
    if action == "Close":
        closing = open_signed("spillway/closing/1", CLOSING, value["closing"])
        need(closing["network"] == entry["network"], "the closing is for another network")
    if action == "Evidence":
        offence = show_offence(entry["network"], *value["evidence"])
    return wire, entry, offence


def show_offence(network, kind, pair):
    """The id of what two documents of one signer prove: they are of one place, and differ."""
    first, second = pair["first"], pair["second"]
    need(first["signer"] == second["signer"] and first["document"] != second["document"], "no contradiction")
    domain, form, number = {
        "Votes": ("spillway/vote/1", VOTE, 0),
        "Proposals": ("spillway/proposal/1", PROPOSAL, 1),
        "Receipts": ("spillway/receipt/1", RECEIPT, 2),
    }[kind]
    a, b = (open_signed(domain, form, one) for one in (first, second))
    need(a["network"] == b["network"] == network, "of another network")
    if kind == "Proposals":
        need(a["block"] != b["block"], "one block, twice")

    def place(one):
        if kind == "Votes":
            return form[1][1](one | {"block": None})
        if kind == "Proposals":
            return form[1][1](one | {"block": bytes(32), "valid_round": None})
        return one["session"] + one["job"] + U32[1](one["leg"])

    need(place(a) == place(b), "of two places")
    return digest("spillway/offence/1", bytes([number]), first["signer"], place(a))


def header_digest(header):
    return digest("spillway/header/1", HEADER[1](header))


def check_certificate(network, header, certificate, committee):
    """More than two thirds of the committee precommitted to this header."""
    need(certificate["block"] == header_digest(header), "the certificate is for another block")
    need(strictly_sorted([one["key"] for one in certificate["signatures"]]), "signatures are strictly sorted by key")
    need(len(certificate["signatures"]) >= len(committee) * 2 // 3 + 1, "too few signatures")
    vote = {"network": network, "height": header["height"], "round": certificate["round"]}
    vote = VOTE[1][1](vote | {"step": ("Precommit", {}), "block": certificate["block"]})
    for one in certificate["signatures"]:
        need(one["key"] in committee, "signed by someone who may not")
        check_signature("spillway/vote/1", vote, one["key"], one["signature"])


def committee_digest(committee):
    return digest("spillway/validators/1", *committee)


def read_block(network, committee, data):
    certified = decode(BLOCK, data)
    header, entries = certified["block"]["header"], certified["block"]["entries"]
    need(header["validators"] == committee_digest(committee), "another committee")
    check_certificate(network, header, certified["certificate"], committee)
    need(merkle_root([envelope_digest(entry) for entry in entries]) == header["entries_root"], "other entries")
    for entry in entries:
        read_entry(SIGNED[1](entry))
    return header


def read_genesis(text):
    """The genesis and the network's id: the digest of everything in it but the bootstrap addresses."""

    def once(pairs):
        need(len(dict(pairs)) == len(pairs), "a field comes twice")
        return dict(pairs)

    try:
        genesis = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise Refused("genesis is not JSON") from None
    need(type(genesis) is dict, "genesis is an object")
    need(list(genesis) == [*GENESIS, "bootstrap"], "genesis has other fields")
    need(json.dumps(genesis, separators=(",", ":")) == text, "not the one way to write a genesis")
    shares = genesis["split"]
    need(type(shares) is dict and list(shares) == SHARES, "split has other fields")
    numbers = [value for name, value in genesis.items() if GENESIS.get(name) is U64] + list(shares.values())
    need(all(type(number) is int and 0 <= number < 1 << 64 for number in numbers), "a number is out of range")
    need(sum(shares.values()) == 10_000 and shares["provider_bp"] >= 7_000, "a provider gets at least 70 %")

    def printable(text, limit):
        return type(text) is str and re.fullmatch(r"[\x20-\x7e]{1,%d}" % limit, text)

    need(printable(genesis["name"], 64), "name: 1 to 64 printable ASCII characters")
    places = genesis["bootstrap"]
    need(type(places) is list and len(places) <= 64, "bootstrap: at most 64 addresses")
    need(all(printable(place, 256) for place in places), "an address is 1 to 256 printable ASCII characters")
    need(genesis["mint_max_per_epoch"] > 0 and genesis["epoch_blocks"] > 0, "nothing could ever be minted")
    need(genesis["grace_ms"] <= 30 * 86_400_000 and genesis["unbond_ms"] <= 90 * 86_400_000, "too long a time")

    def key(text):
        need(type(text) is str and re.fullmatch("[0-9a-f]{64}", text), "a key is 64 hexadecimal digits")
        need(strong(bytes.fromhex(text)), "a key is weak or none")
        return bytes.fromhex(text)

    need(type(genesis["committee"]) is list, "committee is a list")
    genesis["committee"] = [key(one) for one in genesis["committee"]]
    committee_rules(genesis["committee"])
    for name in ("issuer", "treasury", "validators"):
        genesis[name] = key(genesis[name])
    identity = b"".join(write(genesis[name]) for name, (_, write) in GENESIS.items())
    return genesis, digest("spillway/genesis/1", identity)


def read_proof(data):
    """Checks a proof file alone. Returns the network's id, the header that shows it, and what is shown."""
    kind, value = decode(PROOF, data)
    anchor = value["anchor"]
    genesis, network = read_genesis(anchor["genesis"])
    need(genesis["bootstrap"] == [], "a proof names no bootstrap addresses: no signature covers them")
    committee, height = genesis["committee"], 0
    last = {"header": anchor["header"], "certificate": anchor["certificate"], "next": None}
    for step in [*anchor["handovers"], last]:
        header = step["header"]
        need(header["validators"] == committee_digest(committee), "not the committee that was handed over to")
        need(header["height"] > height, "heights only grow")
        check_certificate(network, header, step["certificate"], committee)
        if step["next"] is not None:
            need(committee_digest(step["next"]) == header["next_validators"], "handed over to another committee")
            committee, height = step["next"], header["height"]
    header = anchor["header"]
    if kind == "Account":
        root, supply = state_root(value["account"])
        need((root, supply) == (header["state_root"], header["supply"]), "not under state_root and supply")
        return network, header, value["account"]
    check_path(header["entries_root"], envelope_digest(value["entry"]), value["place"])
    entry = open_signed("spillway/entry/1", ENTRY, value["entry"])
    # Signatures inside of an entry that is final have been checked by the validators.
    action, said = entry["action"]
    need(action in ("Settle", "Close"), "the entry is no settlement")
    inner = said["voucher"] if action == "Settle" else said["closing"]
    settled = decode(VOUCHER if action == "Settle" else CLOSING, inner["document"])
    sides = [entry["account"]] if action == "Settle" else [entry["account"], inner["signer"]]
    both, receipt = read_receipt(value["receipt"])
    need((receipt["network"], receipt["session"]) == (network, settled["session"]), "another session's receipt")
    need(both["provider"]["signer"] in sides, "another provider's receipt")
    root = said["receipts"] if action == "Settle" else settled["receipts"]
    check_path(root, document_digest("spillway/receipt/1", both["provider"]), value["within"])
    return network, header, receipt


# --- The frozen vectors ----------------------------------------------------------------------------------------------


def refuses(name, read, data):
    try:
        read(data)
    except Refused:
        return 1
    raise AssertionError(f"{name}: {data.hex()} was accepted")


def refuses_alterations(name, read, data, bits):
    """Every byte with each of so many bits changed (8: to every other byte, if all are asked for), every beginning, and
    one byte more must be refused."""
    count = 0
    for at in range(len(data)):
        masks = range(1, 256) if EVERY and bits == 8 else [1 << (at + bit) % 8 for bit in range(bits)]
        for mask in masks:
            altered = data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
            count += refuses(f"{name}, byte {at} changed", read, altered)
        count += refuses(f"{name}, cut to {at}", read, data[:at])
    return count + refuses(f"{name} and a byte", read, data + b"\0")


def forgeries(read, voucher):
    """Signatures and bytes that a looser reader accepts: weak keys, second names, lengths and tags that are none."""
    wire, _ = read(voucher)
    key, r, s = wire["signer"], wire["signature"][:32], wire["signature"][32:]
    greater = (int.from_bytes(s, "little") + ORDER).to_bytes(32, "little")
    neutral = b"\1" + bytes(31)
    weak = [bytes(32), bytes(31) + b"\x80", neutral, b"\1" + bytes(30) + b"\x80", b"\xec" + b"\xff" * 30 + b"\x7f"]
    weak += [b"\xed" + b"\xff" * 30 + b"\x7f", b"\xee" + b"\xff" * 30 + b"\x7f"]
    weak += [
        bytes.fromhex(text)
        for text in (
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        )
    ]
    cases = [(weak_key, neutral + bytes(32)) for weak_key in weak]
    cases += [(key, r + greater), (key, neutral + s), (key, bytes(64))]
    count = sum(refuses("a forgery", read, SIGNED[1](wire | {"signer": a, "signature": b})) for a, b in cases)
    for length in (4 << 20, 1 << 32, 1 << 63, (1 << 64) - 1):
        count += refuses("an absurd length", read, voucher[:96] + U64[1](length) + voucher[104:])
    assert not any(map(strong, weak)) and strong(key)
    return count


def main(path):
    lines = [line.split(" ") for line in open(path, encoding="ascii").read().splitlines()]
    vectors = {name: bytes.fromhex(text) for name, text in lines}
    assert len(vectors) == len(lines), "a vector comes twice"
    seen, same, refused = set(), 0, 0

    def vector(name):
        seen.add(name)
        return vectors[name]

    def equal(name, value):
        nonlocal same
        assert value == vector(name), f"{name} is {value.hex()} here"
        same += 1

    def document(name, read, bits=8):
        nonlocal same, refused
        data = vector(name)
        value = read(data)
        same += 1
        refused += refuses_alterations(name, read, data, bits)
        return value

    def of_network(read):
        """Refuses documents of other networks, too."""

        def checked(data):
            wire, value, *more = read(data)
            need(value["network"] == network, "of another network")
            return wire, value, *more

        return checked

    # Everyone's keys in the vectors are those of the seeds 1, 1, … to 9, 9, …
    key = [None, *(Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)).public_key().public_bytes_raw() for n in range(1, 10))]
    authority, consumer, provider = key[2], key[5], key[6]

    genesis, network = read_genesis(vector("genesis").decode())
    same += 1
    equal("network", network)
    equal("session", digest("spillway/session/1", network, consumer, U64[1](0)))
    equal("payout", digest("spillway/payout/1", network, provider, U64[1](3)))
    assert genesis["committee"] == [authority]

    leaves = [bytes(32), network, vectors["session"]]
    equal("merkle-root-of-0", merkle_root([]))
    equal("merkle-root-of-3", merkle_root(leaves))
    path_kind = (4096, MERKLE_PATH, no_rules)
    place = vector("merkle-proof-of-2-in-3")
    check_path(vectors["merkle-root-of-3"], leaves[2], decode(path_kind, place))
    read_path = lambda data: check_path(vectors["merkle-root-of-3"], leaves[2], decode(path_kind, data))
    same, refused = same + 1, refused + refuses_alterations("merkle-proof-of-2-in-3", read_path, place, 8)

    voucher, said = document("voucher", of_network(read_voucher))
    assert (voucher["signer"], said["session"], said["total"]) == (key[8], vectors["session"], 300)
    equal("voucher-digest", document_digest("spillway/voucher/1", voucher))
    refused += forgeries(read_voucher, vectors["voucher"])

    both, receipt = document("receipt-co-signed", of_network(read_receipt))
    assert (both["provider"]["signer"], both["consumer"], receipt["model"]) == (provider, consumer, "tiny-llama")
    parts = (both["provider"]["signer"], both["consumer"], both["provider"]["document"])
    equal("receipt-digest", digest("spillway/receipt/co-signed/1", *parts))

    for name, domain, kind in (
        ("vote", "spillway/vote/1", VOTE),
        ("proposal", "spillway/proposal/1", PROPOSAL),
        ("closing", "spillway/closing/1", CLOSING),
    ):
        document(name, of_network(lambda data: read_signed(domain, kind, data)))

    for name in [name for name in vectors if name.startswith("entry-") and name not in ("entry-mint-digest", "entry-mint-leaf")]:
        wire, entry, offence = document(name, of_network(read_entry))
        if offence is not None:
            equal(f"offence-{name.removeprefix('entry-evidence-')}", offence)
        if name == "entry-mint":
            equal("entry-mint-digest", document_digest("spillway/entry/1", wire))
            equal("entry-mint-leaf", envelope_digest(wire))
    # Every kind of entry there is has a vector.
    kinds = {data[200] for name, data in vectors.items() if name.startswith("entry-") and len(data) > 200}
    assert kinds == set(range(14)), kinds

    header = document("block-certified", lambda data: read_block(network, [authority], data), bits=2)
    equal("block-digest", header_digest(header))
    assert header["parent"] == network

    committee = decode(COMMITTEE, vector("committee"))
    same += 1
    equal("committee-digest", committee_digest(committee))

    proven_network, header, account = document("proof-account", read_proof, bits=1)
    equal("account-leaf", NODE[1](account_leaf(account["account"], account["state"])))
    equal("state-root", state_root(account)[0])
    # 300 were settled: 70 % of it is the provider's.
    assert (account["account"], account["state"]["balance"], header["height"]) == (provider, 210, 3)
    again, header, receipt = document("proof-receipt", read_proof, bits=1)
    assert (again, receipt["network"], receipt["leg"], header["height"]) == (proven_network, again, 1, 3)
    assert proven_network != network, "another committee is another network"

    forgotten = vectors.keys() - seen
    assert not forgotten, f"not checked: {sorted(forgotten)}"
    print(f"{len(vectors)} frozen vectors: {same} read or computed to the same bytes, {refused} altered copies refused")


def compare(path):
    """Reads what the ledger's decoders say of bytes (ledger/fuzz/examples/verdicts.rs), and says the same of each."""
    readers = {
        "voucher": lambda data: decode(VOUCHER, data),
        "signed-voucher": read_voucher,
        "receipt": lambda data: decode(RECEIPT, data),
        "co-signed": read_receipt,
        "entry": lambda data: decode(ENTRY, data),
        "signed-entry": lambda data: read_signed("spillway/entry/1", ENTRY, data),
        "vote": lambda data: decode(VOTE, data),
        "proposal": lambda data: decode(PROPOSAL, data),
        "closing": lambda data: decode(CLOSING, data),
        "committee": lambda data: decode(COMMITTEE, data),
        "block": lambda data: decode(BLOCK, data),
        "proof": lambda data: decode(PROOF, data),
        "verified-proof": read_proof,
        "genesis": lambda data: read_genesis(decode((64 << 10, (read_all_text, str.encode), no_rules), data)),
    }
    count = accepted = 0
    for line in open(path, encoding="ascii"):
        name, verdict, text = line.rstrip("\n").split(" ")
        try:
            readers[name](bytes.fromhex(text))
            ours = "1"
        except Refused as why:
            ours = f"0: {why}"
        assert ours[0] == verdict, f"{name} {text}: the ledger says {verdict}, and here it is {ours}"
        count, accepted = count + 1, accepted + (ours == "1")
    print(f"{count} inputs judged alike, {accepted} of them accepted")


EVERY = "--every" in sys.argv[2:]  # Every byte of a signed document changed to each of the 255 others: minutes.

if __name__ == "__main__":
    main(sys.argv[1])
    if "--verdicts" in sys.argv[2:-1]:
        compare(sys.argv[-1])
