//! Frames between a validator and its clients: one byte for the kind, four for the length, little-endian, then the body.
//! Invariant: a body above the limit is refused before a byte of it is read.

use std::io::{self, Read, Write};

/// A signed entry; the answer has its place among the connection's entries, the height, and why not.
pub const ENTRY: u8 = b'E';
/// How the validator is; no body. The answer is JSON.
pub const STATUS: u8 = b'S';
/// An account's nonce and balance; the body is its key. The answer is JSON.
pub const ACCOUNT: u8 = b'A';
/// The largest body, in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// Reads one frame.
pub fn read(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > BODY_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame's body is above 64 KiB"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok((head[0], body))
}

/// Writes one frame.
pub fn write(to: &mut impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    to.write_all(&[kind])?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(body)
}
