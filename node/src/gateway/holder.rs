//! Names of what has limits: keys and projects.
//! Invariant: the two kinds of id are never mistaken for each other.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Names a key; also the middle of its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub(super) [u8; 4]);

/// Names a project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ProjectId(pub(super) [u8; 4]);

/// A key or a project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// A key.
    Key(KeyId),
    /// A project, which keys belong to.
    Project(ProjectId),
}

/// Not eight hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id, which has 8 hexadecimal digits")]
pub struct BadId;

fn parse(text: &str) -> Result<[u8; 4], BadId> {
    let mut id = [0; 4];
    hex::decode_to_slice(text, &mut id).map_err(|_| BadId).map(|()| id)
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl FromStr for KeyId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        parse(text).map(Self)
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl FromStr for ProjectId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        parse(text).map(Self)
    }
}

impl From<ProjectId> for String {
    fn from(id: ProjectId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ProjectId {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl Holder {
    /// The word for its kind.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Project(_) => "project",
        }
    }

    /// Its id's bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 4] {
        match self {
            Self::Key(KeyId(id)) | Self::Project(ProjectId(id)) => id,
        }
    }

    /// One of the same kind.
    #[must_use]
    pub const fn with_bytes(self, id: [u8; 4]) -> Self {
        match self {
            Self::Key(_) => Self::Key(KeyId(id)),
            Self::Project(_) => Self::Project(ProjectId(id)),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:08x}", self.kind(), u32::from_be_bytes(self.bytes()))
    }
}
