//! The lines of a file, plain or compressed, and the rows of a table in it.
//! Invariant: a line is held one at a time and is at most [`LINE_MAX`] bytes, whatever the file holds.

use super::error::{Problem, TraceError};
use ruzstd::decoding::StreamingDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::str::FromStr;

/// Bytes of a line. A prompt of ten million tokens names 20,000 blocks in a line of 160 KB.
pub const LINE_MAX: usize = 1 << 20;
/// Fields of a row that a reader asks for.
const ASKED_MAX: usize = 12;

/// Reads line by line, and says where it is.
pub struct Lines<'a> {
    file: String,
    reader: Box<dyn BufRead + 'a>,
    line: u64,
    buffer: Vec<u8>,
}

impl Lines<'static> {
    /// The lines of a file; one whose name ends in `.zst` is decompressed on the way.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let file = path.display().to_string();
        let opened = File::open(path).map_err(|source| TraceError::Read { file: file.clone(), source })?;
        Ok(Lines::new(&file, Box::new(opened)))
    }
}

impl<'a> Lines<'a> {
    /// The lines of what is already in memory; `name` stands for the file, and decides as a file's name does.
    pub fn of(name: &str, bytes: &'a [u8]) -> Self {
        Self::new(name, Box::new(bytes))
    }

    fn new(file: &str, from: Box<dyn Read + 'a>) -> Self {
        let reader: Box<dyn BufRead + 'a> = if Path::new(file).extension().is_some_and(|extension| extension == "zst") {
            Box::new(BufReader::new(Frames::Between(BufReader::new(from))))
        } else {
            Box::new(BufReader::new(from))
        };
        Self { file: file.to_owned(), reader, line: 0, buffer: Vec::new() }
    }

    /// Goes to the next line that is not blank; `false` at the end.
    pub fn advance(&mut self) -> Result<bool, TraceError> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let limit = LINE_MAX as u64 + 1;
            let read = (&mut self.reader).take(limit).read_until(b'\n', &mut self.buffer);
            let read = read.map_err(|source| TraceError::Read { file: self.file.clone(), source })?;
            if read == 0 {
                return Ok(false);
            }
            if self.buffer.len() > LINE_MAX {
                return Err(self.error("line", Problem::TooLong { max: LINE_MAX }));
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    /// The present line.
    pub fn text(&self) -> Result<&str, TraceError> {
        let text = std::str::from_utf8(self.buffer.trim_ascii_end());
        text.map_err(|_| self.error("line", Problem::not(String::from_utf8_lossy(&self.buffer), "UTF-8")))
    }

    /// An error in the present line.
    pub fn error(&self, field: &str, problem: Problem) -> TraceError {
        TraceError::Field { file: self.file.clone(), line: self.line, field: field.to_owned(), problem }
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        &self.file
    }
}

/// The rows of a table whose first line names its columns and whose values hold no commas.
pub struct Table<'a> {
    lines: Lines<'a>,
    asked: &'static [&'static str],
    /// For each column of the file, which of `asked` it is.
    columns: Vec<Option<usize>>,
}

impl<'a> Table<'a> {
    /// Finds the columns that are asked for; others are left out.
    pub fn new(mut lines: Lines<'a>, asked: &'static [&'static str]) -> Result<Self, TraceError> {
        assert!(asked.len() <= ASKED_MAX, "a row holds at most {ASKED_MAX} fields");
        if !lines.advance()? {
            return Err(TraceError::Empty { file: lines.file().to_owned() });
        }
        let header = lines.text()?.trim_start_matches('\u{feff}');
        let place = |name: &str| asked.iter().position(|column| *column == name.trim());
        let columns: Vec<_> = header.split(',').map(place).collect();
        for (index, name) in asked.iter().enumerate() {
            match columns.iter().filter(|column| **column == Some(index)).count() {
                0 => return Err(lines.error(name, Problem::Missing)),
                1 => {}
                _ => return Err(lines.error(name, Problem::Twice)),
            }
        }
        Ok(Self { lines, asked, columns })
    }

    /// The next row.
    pub fn row(&mut self) -> Result<Option<Row<'_>>, TraceError> {
        if !self.lines.advance()? {
            return Ok(None);
        }
        let mut fields = [""; ASKED_MAX];
        let mut have = 0;
        for field in self.lines.text()?.split(',') {
            if let Some(Some(asked)) = self.columns.get(have) {
                fields[*asked] = field.trim();
            }
            have += 1;
        }
        if have != self.columns.len() {
            return Err(self.lines.error("line", Problem::Fields { have, want: self.columns.len() }));
        }
        Ok(Some(Row { lines: &self.lines, asked: self.asked, fields }))
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        self.lines.file()
    }
}

/// A row; fields go by their place among those asked for.
pub struct Row<'a> {
    lines: &'a Lines<'a>,
    asked: &'static [&'static str],
    fields: [&'a str; ASKED_MAX],
}

impl<'a> Row<'a> {
    /// A field as it stands.
    pub fn text(&self, field: usize) -> &'a str {
        self.fields[field]
    }

    /// A whole number from `min` to `max`.
    pub fn whole(&self, field: usize, min: u32, max: u32) -> Result<u32, TraceError> {
        self.number(field, min, max, "a whole number", f64::from)
    }

    /// A number from `min` to `max`.
    pub fn real(&self, field: usize, min: f64, max: f64) -> Result<f64, TraceError> {
        self.number(field, min, max, "a number", |value| value)
    }

    /// An error in a field.
    pub fn error(&self, field: usize, problem: Problem) -> TraceError {
        self.lines.error(self.asked[field], problem)
    }

    fn number<N: FromStr + PartialOrd + Copy>(
        &self,
        field: usize,
        min: N,
        max: N,
        expected: &'static str,
        show: impl Fn(N) -> f64,
    ) -> Result<N, TraceError> {
        let text = self.text(field);
        if text.is_empty() {
            return Err(self.error(field, Problem::Missing));
        }
        let Ok(value) = text.parse::<N>() else { return Err(self.error(field, Problem::not(text, expected))) };
        // Written so that what is no number is refused.
        if value >= min && value <= max {
            return Ok(value);
        }
        Err(self.error(field, Problem::range(text, show(min), show(max))))
    }
}

/// One zstd frame after the other. The decoder refuses windows above 128 MiB, so a hostile file cannot claim more.
enum Frames<R: BufRead> {
    Between(R),
    Within(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    Broken,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(self, Self::Broken) {
                Self::Between(mut inner) => {
                    if inner.fill_buf()?.is_empty() {
                        *self = Self::Between(inner);
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new(inner).map_err(io::Error::other)?;
                    *self = Self::Within(Box::new(decoder));
                }
                Self::Within(mut decoder) => {
                    let read = decoder.read(buffer)?;
                    if read > 0 {
                        *self = Self::Within(decoder);
                        return Ok(read);
                    }
                    *self = Self::Between(decoder.into_inner());
                }
                Self::Broken => return Err(io::Error::other("broken before")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(name: &str, bytes: &[u8]) -> Result<Vec<(u32, f64)>, TraceError> {
        let mut table = Table::new(Lines::of(name, bytes), &["count", "rate"])?;
        let mut rows = Vec::new();
        while let Some(row) = table.row()? {
            rows.push((row.whole(0, 0, 100)?, row.real(1, 0.5, 9.0)?));
        }
        Ok(rows)
    }

    #[test]
    fn columns_go_by_name() {
        let table = b"\xef\xbb\xbfrate,other,count\r\n1.5,x,7\r\n\r\n2,,0";
        assert_eq!(rows("t.csv", table).unwrap(), [(7, 1.5), (0, 2.0)]);
    }

    #[test]
    fn errors_name_file_line_and_field() {
        let cases: [(&[u8], &str); 12] = [
            (b"", "t.csv: empty"),
            (b"count\n1", "t.csv:1: rate: missing"),
            (b"count,rate,count\n", "t.csv:1: count: there twice"),
            (b"count,rate\n1,1\n\nx,1", "t.csv:4: count: \"x\" is not a whole number"),
            (b"count,rate\n-1,1", "t.csv:2: count: \"-1\" is not a whole number"),
            (b"count,rate\n101,1", "t.csv:2: count: 101 is not from 0 to 100"),
            (b"count,rate\n1,NaN", "t.csv:2: rate: NaN is not from 0.5 to 9"),
            (b"count,rate\n1,inf", "t.csv:2: rate: inf is not from 0.5 to 9"),
            (b"count,rate\n1,", "t.csv:2: rate: missing"),
            (b"count,rate\n1", "t.csv:2: line: 1 fields, where the header has 2"),
            (b"count,rate\n1,2,3", "t.csv:2: line: 3 fields, where the header has 2"),
            (b"count,rate\n\xff,2", "t.csv:2: line: \"\u{fffd},2\" is not UTF-8"),
        ];
        for (bytes, error) in cases {
            assert_eq!(rows("t.csv", bytes).unwrap_err().to_string(), error);
        }
        let long = [b"count,rate\n".as_slice(), &vec![b'1'; 3 * LINE_MAX]].concat();
        assert_eq!(rows("t.csv", &long).unwrap_err().to_string(), "t.csv:2: line: longer than 1048576 bytes");
        assert!(rows("t.zst", b"count,rate\n1,1").unwrap_err().to_string().starts_with("t.zst: "));
    }

    #[test]
    fn compressed_files_read_on_over_frames_and_stop_where_they_break() {
        let compress =
            |text: &[u8]| ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest);
        let both = [compress(b"count,rate\n1,2\n"), compress(b"3,4\n")].concat();
        assert_eq!(rows("t.csv.zst", &both).unwrap(), [(1, 2.0), (3, 4.0)]);
        for end in 1..both.len() {
            // Cut between the frames it is a whole file; cut anywhere else it is an error, never a panic.
            if let Ok(rows) = rows("t.csv.zst", &both[..end]) {
                assert_eq!(rows, [(1, 2.0)], "cut at {end}");
            }
        }
    }
}
