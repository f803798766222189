//! What the book says about an entry: what it did, or why it may not.
//! Invariant: an error changed nothing.

use wincode::{SchemaRead, SchemaWrite};

use crate::codec::Document;
use crate::keys::{Account, Digest, PublicKey};
use crate::money::{Credits, Price, Usage};
use crate::payout::{PayoutId, PayoutState, RejectReason};
use crate::split::Parts;
use crate::voucher::SessionId;

/// A payment session as the book knows it.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct SessionState {
    /// Who locked the deposit.
    pub consumer: Account,
    /// Who may settle.
    pub provider: Account,
    /// Who brought the job.
    pub gateway: Account,
    /// Whose signature makes a voucher.
    pub voucher_key: PublicKey,
    /// The highest price the consumer agreed to.
    pub price_cap: Price,
    /// What was locked.
    pub deposit: Credits,
    /// What has been settled of it, all shares together.
    pub settled: Credits,
    /// What the provider had of that.
    pub paid_provider: Credits,
    /// When it ends, in Unix milliseconds of block time.
    pub expires_ms: u64,
    /// Whether it can still be settled or refunded.
    pub open: bool,
    /// The height of the block that opened it.
    pub opened_height: u64,
}

impl Document for SessionState {
    const DOMAIN: &'static str = "spillway/state/session/1";
    const BYTES_MAX: usize = 4 * 32 + 3 * 8 + 4 * 8 + 1 + 8;
}

impl SessionState {
    /// What is still locked.
    pub fn locked(&self) -> Credits {
        if self.open {
            self.deposit.checked_sub(self.settled).expect("settled never exceeds the deposit")
        } else {
            Credits::ZERO
        }
    }
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Credits came in.
    Minted {
        /// Who got them.
        to: Account,
        /// How many.
        amount: Credits,
        /// The deposit they stand for.
        reference: String,
    },
    /// Credits changed hands.
    Transferred {
        /// Who gave.
        from: Account,
        /// Who got.
        to: Account,
        /// How many.
        amount: Credits,
    },
    /// A deposit was locked.
    Opened {
        /// The session's id.
        session: SessionId,
        /// Who locked it.
        consumer: Account,
        /// The session.
        state: SessionState,
    },
    /// A voucher was paid.
    Settled {
        /// The session.
        session: SessionId,
        /// Who was paid for the work.
        provider: Account,
        /// Who paid.
        consumer: Account,
        /// What has been settled since the session began.
        claim: Credits,
        /// What this settlement adds to that.
        gross: Credits,
        /// How the gross was divided.
        parts: Parts,
        /// The work it pays for.
        usage: Usage,
        /// The Merkle root of the receipts for that work.
        receipts: Digest,
        /// Whether the session is now closed.
        last: bool,
        /// What went back to the consumer.
        change: Credits,
    },
    /// The consumer took back what was left.
    Refunded {
        /// The session.
        session: SessionId,
        /// Who got it back.
        consumer: Account,
        /// How much.
        amount: Credits,
    },
    /// A deposit grew.
    ToppedUp {
        /// The session.
        session: SessionId,
        /// Who locked more.
        consumer: Account,
        /// How much more.
        amount: Credits,
        /// What has been locked since the session began.
        deposit: Credits,
    },
    /// Both sides ended a session.
    Closed {
        /// The session.
        session: SessionId,
        /// Who was paid for the work.
        provider: Account,
        /// Who paid.
        consumer: Account,
        /// What has been settled since the session began.
        total: Credits,
        /// What this adds to that.
        gross: Credits,
        /// How the gross was divided.
        parts: Parts,
        /// The work it pays for.
        usage: Usage,
        /// The Merkle root of the receipts for that work.
        receipts: Digest,
        /// What went back to the consumer.
        change: Credits,
    },
    /// Credits were put at stake.
    Bonded {
        /// Whose.
        account: Account,
        /// How many.
        amount: Credits,
    },
    /// Credits will come back from the stake.
    Unbonding {
        /// Whose.
        account: Account,
        /// How many.
        amount: Credits,
        /// When, in Unix milliseconds of block time.
        due_ms: u64,
    },
    /// Credits were locked to be paid out.
    PayoutRequested {
        /// Names it.
        payout: PayoutId,
        /// Who asked for what, when.
        state: PayoutState,
    },
    /// A payout was paid, and its credits are gone.
    Burned {
        /// The payout.
        payout: PayoutId,
        /// Who was paid.
        account: Account,
        /// How much.
        amount: Credits,
        /// The bank's or processor's reference.
        reference: String,
    },
    /// A payout was not paid, and its credits went back.
    PayoutRejected {
        /// The payout.
        payout: PayoutId,
        /// Who has them back.
        account: Account,
        /// How many.
        amount: Credits,
        /// Why.
        reason: RejectReason,
    },
    /// An offence was shown, and its author lost what it had at stake.
    Punished {
        /// Who did it.
        offender: Account,
        /// Who showed it.
        reporter: Account,
        /// Names the offence.
        offence: Digest,
        /// What was taken.
        slashed: Credits,
        /// What of that the reporter got; the rest is the treasury's.
        reward: Credits,
        /// Whether a validator lost its place, from the next block on.
        removed: bool,
    },
    /// A validator voted on another.
    Elected {
        /// Who voted.
        voter: Account,
        /// On whom.
        validator: PublicKey,
        /// Whether it should be a validator.
        member: bool,
        /// From which height on.
        at: u64,
        /// Whether that is decided now.
        decided: bool,
    },
}

/// Why an entry may not be applied, in order of precedence. The signer's fault unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Meant for another network.
    #[error("the entry is for another network")]
    WrongNetwork,
    /// Signed by someone else than its account.
    #[error("the entry is not signed by its account")]
    WrongSigner,
    /// Too late; sign a new one.
    #[error("the entry expired at height {at}")]
    Expired {
        /// The last height at which it could have been applied.
        at: u64,
    },
    /// Lives longer than the book remembers business ids.
    #[error("expires_height may be at most {max}")]
    TooFarExpiry {
        /// The last allowed expiry now.
        max: u64,
    },
    /// Nobody's fault: this is a retry, and the first try worked.
    #[error("already applied at height {height}")]
    AlreadyApplied {
        /// Where.
        height: u64,
    },
    /// Not the account's next nonce; read it again.
    #[error("the account's next nonce is {expected}")]
    BadNonce {
        /// The next one.
        expected: u64,
    },
    /// Only the issuer mints, burns and rejects payouts.
    #[error("only the issuer may do this")]
    NotIssuer,
    /// Nothing is no amount.
    #[error("the amount is zero")]
    ZeroAmount,
    /// A key under which anyone could sign, or no key.
    #[error("{0} is a weak or invalid key")]
    WeakKey(&'static str),
    /// This deposit was minted before.
    #[error("the reference was used before")]
    DuplicateReference,
    /// More than this epoch allows; wait for the next.
    #[error("this epoch may mint {left} more")]
    EpochCap {
        /// What is left of the epoch's cap.
        left: Credits,
    },
    /// More than can be written down.
    #[error("the supply would exceed what can be written down")]
    SupplyFull,
    /// Own work costs nothing and needs no session.
    #[error("a session with oneself pays nobody")]
    SelfSession,
    /// Already over, or absurdly far away.
    #[error("expires_ms must lie after {after} and at most at {max}")]
    BadExpiry {
        /// The block's time, in Unix milliseconds.
        after: u64,
        /// The latest allowed, in Unix milliseconds.
        max: u64,
    },
    /// Close some first.
    #[error("the account has {max} open sessions already")]
    TooManySessions {
        /// The limit.
        max: u32,
    },
    /// Close some payouts first.
    #[error("the account has {max} payouts under way already")]
    TooManyPayouts {
        /// The limit.
        max: u32,
    },
    /// Too little to be paid out.
    #[error("a payout is at least {min}")]
    BelowMinimum {
        /// The least.
        min: Credits,
    },
    /// Not enough.
    #[error("the account has {have}, but {need} are needed")]
    InsufficientBalance {
        /// The balance.
        have: Credits,
        /// What was asked for.
        need: Credits,
    },
    /// More than is at stake.
    #[error("the account has bonded {have}, but {need} are needed")]
    InsufficientBond {
        /// The bond.
        have: Credits,
        /// What was asked for.
        need: Credits,
    },
    /// A validator keeps its bond.
    #[error("a validator keeps a bond of {need}")]
    BondInUse {
        /// The least.
        need: Credits,
    },
    /// One part of a bond comes back at a time; ask again then.
    #[error("a part of the bond comes back at {until_ms} ms already")]
    UnbondPending {
        /// When, in Unix milliseconds of block time.
        until_ms: u64,
    },
    /// Never asked for, or finished.
    #[error("no such payout waits")]
    UnknownPayout,
    /// The two things do not contradict each other, or their signatures do not hold.
    #[error("the evidence shows no offence")]
    NoOffence,
    /// Punished already.
    #[error("the offence was punished before")]
    KnownOffence,
    /// The offender has no bond and is no validator.
    #[error("the offender has nothing at stake")]
    NothingAtStake,
    /// Only validators vote.
    #[error("the entry's account is not a validator")]
    NotValidator,
    /// Too soon, or too far away.
    #[error("at must lie after height {after} and at most at {max}")]
    BadElectionHeight {
        /// The block's height.
        after: u64,
        /// The latest allowed.
        max: u64,
    },
    /// It is so already.
    #[error("this election would change nothing")]
    NothingToElect,
    /// The committee would be empty or too large.
    #[error("a committee has 1 to 128 validators")]
    CommitteeSize,
    /// Each votes once.
    #[error("the account has voted in this election")]
    AlreadyVoted,
    /// Wait for some to end.
    #[error("the account has voted in {max} elections under way already")]
    TooManyElections {
        /// The limit.
        max: usize,
    },
    /// Not signed by the session's voucher key, or altered since.
    #[error("the voucher is forged")]
    ForgedVoucher,
    /// Not signed by the session's other side, or altered since.
    #[error("the closing is forged")]
    ForgedClosing,
    /// The voucher or closing names a session of another network.
    #[error("the voucher is for a session of another network")]
    WrongSession,
    /// Never opened, or closed so long ago that it is forgotten.
    #[error("no such session")]
    UnknownSession,
    /// Only the session's provider settles.
    #[error("the entry's account is not the session's provider")]
    NotProvider,
    /// Only the session's consumer is refunded.
    #[error("the entry's account is not the session's consumer")]
    NotConsumer,
    /// Only the session's two sides close it.
    #[error("the entry's account is neither side of the session")]
    NotParty,
    /// Settled for good, or refunded.
    #[error("the session is closed")]
    SessionClosed,
    /// The voucher promises more than was locked.
    #[error("the voucher promises {total}, the deposit is {deposit}")]
    OverDeposit {
        /// The voucher's total.
        total: Credits,
        /// The deposit.
        deposit: Credits,
    },
    /// More is claimed than was promised.
    #[error("{claim} are claimed of a voucher for {total}")]
    OverVoucher {
        /// The claim.
        claim: Credits,
        /// The voucher's total.
        total: Credits,
    },
    /// Nothing new is claimed.
    #[error("{settled} are settled already")]
    StaleVoucher {
        /// What is settled.
        settled: Credits,
    },
    /// The provider still has time; try again then.
    #[error("a refund is due at {at} ms")]
    TooEarly {
        /// From when on, in Unix milliseconds of block time.
        at: u64,
    },
}

impl ApplyError {
    /// Whether other entries or the passing of time alone can make this go away.
    pub fn may_pass_later(&self) -> bool {
        use ApplyError as E;
        match self {
            E::EpochCap { .. }
            | E::BadExpiry { .. }
            | E::TooManySessions { .. }
            | E::InsufficientBalance { .. }
            | E::TooManyPayouts { .. }
            | E::InsufficientBond { .. }
            | E::BondInUse { .. }
            | E::UnbondPending { .. }
            | E::UnknownPayout
            | E::NothingAtStake
            | E::NotValidator
            | E::TooManyElections { .. }
            | E::UnknownSession
            | E::TooEarly { .. } => true,
            E::WrongNetwork
            | E::WrongSigner
            | E::Expired { .. }
            | E::TooFarExpiry { .. }
            | E::AlreadyApplied { .. }
            | E::BadNonce { .. }
            | E::NotIssuer
            | E::ZeroAmount
            | E::WeakKey(_)
            | E::DuplicateReference
            | E::SupplyFull
            | E::SelfSession
            | E::BelowMinimum { .. }
            | E::NoOffence
            | E::KnownOffence
            | E::BadElectionHeight { .. }
            | E::NothingToElect
            | E::CommitteeSize
            | E::AlreadyVoted
            | E::ForgedVoucher
            | E::ForgedClosing
            | E::NotParty
            | E::WrongSession
            | E::NotProvider
            | E::NotConsumer
            | E::SessionClosed
            | E::OverDeposit { .. }
            | E::OverVoucher { .. }
            | E::StaleVoucher { .. } => false,
        }
    }
}

/// A rule of the book that does not hold: our own fault, and no reason to go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Credits appeared or vanished.
    #[error(
        "accounts of {accounts}, locked deposits of {locked} and payouts of {payouts} are not the supply of {supply}"
    )]
    Conservation {
        /// The sum of all balances and stakes, in micro-credits.
        accounts: u128,
        /// The sum of all locked deposits, in micro-credits.
        locked: u128,
        /// The sum of all payouts under way, in micro-credits.
        payouts: u128,
        /// What was minted less what was burned.
        supply: Credits,
    },
    /// A running total is not the sum that it stands for.
    #[error("{what} add up to {counted}, the book says {said}")]
    Total {
        /// Of what.
        what: &'static str,
        /// The sum, in micro-credits.
        counted: u128,
        /// The running total.
        said: Credits,
    },
    /// A session settled more than its deposit, or the provider got less than 70 %.
    #[error("session {0} paid more than it had, or too little to its provider")]
    Session(SessionId),
    /// An account's count of open sessions or payouts is wrong.
    #[error("account {0} has another number of open sessions or payouts than it says")]
    Counts(Account),
}
