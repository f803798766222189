//! A `multipart/form-data` body (RFC 7578), read as strictly as it is written.
//! Invariant: what is written has each part exactly once and one reading, so that this node and a server behind it never take
//! different parts for the model.

use super::request::BadRequest;
use spillway_ledger::Digest;

/// Most parts of a form.
const PARTS_MAX: usize = 64;
/// Longest boundary: RFC 2046.
const BOUNDARY_MAX: usize = 70;

/// A form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    parts: Vec<Field>,
}

/// One part of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its field's name.
    pub name: String,
    /// The file's name, if it is a file.
    pub filename: Option<String>,
    /// What its bytes are, if it says so.
    pub content_type: Option<String>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Form {
    /// Reads a body; its boundary is its first line.
    ///
    /// # Errors
    /// If it is no form, or has a part that two readers might read differently.
    pub fn parse(body: &[u8]) -> Result<Self, BadRequest> {
        let fail = |why: &str| BadRequest { field: None, why: format!("the body is no multipart/form-data: {why}") };
        let line = find(body, b"\r\n").ok_or_else(|| fail("no boundary"))?;
        let (boundary, mut rest) = (&body[..line], &body[line..]);
        if !boundary.starts_with(b"--") || !(3..=BOUNDARY_MAX + 2).contains(&boundary.len()) {
            return Err(fail("no boundary"));
        }
        let delimiter = [b"\r\n".as_slice(), boundary].concat();
        let mut parts = Vec::new();
        loop {
            rest = rest.strip_prefix(b"\r\n").ok_or_else(|| fail("a boundary is followed by something else"))?;
            let end = find(rest, &delimiter).ok_or_else(|| fail("it ends early"))?;
            if parts.len() == PARTS_MAX {
                return Err(fail(&format!("more than {PARTS_MAX} parts")));
            }
            parts.push(part(&rest[..end]).map_err(fail)?);
            rest = &rest[end + delimiter.len()..];
            if rest.strip_prefix(b"--").is_some_and(|rest| rest.trim_ascii().is_empty()) {
                return Ok(Self { parts });
            }
        }
    }

    /// The text of the only part of that name; `None` if there is none.
    ///
    /// # Errors
    /// If there are several, or it is no text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, BadRequest> {
        let mut named = self.parts.iter().filter(|part| part.name == name);
        let Some(part) = named.next() else { return Ok(None) };
        if named.next().is_some() {
            return Err(BadRequest::new(name, "occurs twice"));
        }
        if part.filename.is_some() {
            return Err(BadRequest::new(name, "a file"));
        }
        std::str::from_utf8(&part.bytes).map(Some).map_err(|_| BadRequest::new(name, "no text"))
    }

    /// Whether there is a file of that name.
    #[must_use]
    pub fn has_file(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part.name == name && part.filename.is_some())
    }

    /// Puts a text in the place of every part of that name, or at the end.
    pub fn set(&mut self, name: &str, text: &str) {
        let bytes = text.as_bytes().to_vec();
        let field = Field { name: name.to_owned(), filename: None, content_type: None, bytes };
        match self.parts.iter().position(|part| part.name == name) {
            Some(position) => {
                self.parts[position] = field;
                let mut index = 0;
                self.parts.retain(|part| {
                    index += 1;
                    index - 1 == position || part.name != name
                });
            }
            None => self.parts.push(field),
        }
    }

    /// Takes out every part whose name `is_out` holds for.
    pub fn remove_where(&mut self, is_out: impl Fn(&str) -> bool) {
        self.parts.retain(|part| !is_out(&part.name));
    }

    /// The body, with a boundary that occurs in no part.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let boundary = self.boundary();
        let mut body = Vec::with_capacity(self.parts.iter().map(|part| part.bytes.len() + 256).sum());
        for part in &self.parts {
            body.extend_from_slice(format!("--{boundary}\r\n").as_bytes());
            body.extend_from_slice(format!("Content-Disposition: form-data; name=\"{}\"", part.name).as_bytes());
            if let Some(filename) = &part.filename {
                body.extend_from_slice(format!("; filename=\"{filename}\"").as_bytes());
            }
            body.extend_from_slice(b"\r\n");
            if let Some(content_type) = &part.content_type {
                body.extend_from_slice(format!("Content-Type: {content_type}\r\n").as_bytes());
            }
            body.extend_from_slice(b"\r\n");
            body.extend_from_slice(&part.bytes);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        body
    }

    /// A boundary drawn from the parts themselves: bytes that hold the hash of what they are part of cannot be made.
    fn boundary(&self) -> String {
        let bytes: Vec<&[u8]> = self.parts.iter().map(|part| part.bytes.as_slice()).collect();
        format!("spillway-{}", &Digest::of("spillway/form/1", &bytes).to_string()[..40])
    }
}

/// The `Content-Type` of a form's body.
#[must_use]
pub fn content_type(body: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(&body[..find(body, b"\r\n")?]).ok()?;
    let boundary = line.strip_prefix("--")?;
    boundary
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        .then(|| format!("multipart/form-data; boundary={boundary}"))
}

fn part(bytes: &[u8]) -> Result<Field, &'static str> {
    let end = find(bytes, b"\r\n\r\n").ok_or("a part has no headers")?;
    let headers = std::str::from_utf8(&bytes[..end]).map_err(|_| "a part's headers are no text")?;
    let (mut name, mut filename, mut content_type) = (None, None, None);
    for header in headers.split("\r\n") {
        if header.contains(['\r', '\n', '\0']) {
            return Err("a part's header holds a control character");
        }
        let (key, value) = header.split_once(':').ok_or("a part's header has no colon")?;
        match key.to_ascii_lowercase().as_str() {
            "content-disposition" if name.is_none() => (name, filename) = disposition(value.trim())?,
            "content-type" if content_type.is_none() => content_type = Some(value.trim().to_owned()),
            "content-disposition" | "content-type" => return Err("a part has a header twice"),
            // RFC 7578 has no others; some clients say how long a part is, or that it is sent as it is.
            _ => {}
        }
    }
    let name = name.ok_or("a part has no name")?;
    Ok(Field { name, filename, content_type, bytes: bytes[end + 4..].to_vec() })
}

type Names = (Option<String>, Option<String>);

/// `form-data; name="…"; filename="…"`: quoted strings without quotes or backslashes in them, as browsers and clients write
/// them.
fn disposition(value: &str) -> Result<Names, &'static str> {
    let mut rest = value.strip_prefix("form-data").ok_or("a part is no form-data")?;
    let (mut name, mut filename) = (None, None);
    while let Some(parameter) = rest.trim_start().strip_prefix(';') {
        let (key, value) = parameter.split_once('=').ok_or("a parameter without a value")?;
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or("a quote is open")?,
            None => value.split_at(value.find(';').unwrap_or(value.len())),
        };
        if value.contains('\\') {
            return Err("a name holds a backslash");
        }
        let slot = match key.trim() {
            "name" => &mut name,
            "filename" => &mut filename,
            // The same file name in another alphabet; the plain one stands.
            "filename*" => {
                rest = after;
                continue;
            }
            _ => return Err("a parameter that is none of a form's"),
        };
        if slot.replace(value.to_owned()).is_some() {
            return Err("a parameter twice");
        }
        rest = after;
    }
    if rest.trim().is_empty() { Ok((name, filename)) } else { Err("something behind a part's name") }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &[u8] = b"--x1\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--x1\r\n\
        content-disposition: form-data; name=\"file\"; filename=\"a b.wav\"\r\nContent-Type: audio/wav\r\n\r\n\
        RIFF\r\n--x2\r\n\0\xff\r\n--x1--\r\n";

    #[test]
    fn forms_are_read_and_written() {
        let mut form = Form::parse(FORM).expect("a form");
        assert_eq!(form.text("model"), Ok(Some("whisper")));
        assert!(form.has_file("file") && !form.has_file("model"));
        assert_eq!(form.parts[1].bytes, b"RIFF\r\n--x2\r\n\0\xff");
        let written = form.to_bytes();
        assert_eq!(Form::parse(&written).as_ref(), Ok(&form));
        let content_type = content_type(&written).expect("a boundary");
        assert!(content_type.starts_with("multipart/form-data; boundary=spillway-"), "{content_type}");
        form.set("model", "other");
        form.set("language", "de");
        form.remove_where(|name| name == "file");
        let text = String::from_utf8(form.to_bytes()).expect("text");
        assert!(
            text.contains("name=\"model\"\r\n\r\nother\r\n") && text.contains("name=\"language\"\r\n\r\nde\r\n"),
            "{text}"
        );
        assert!(!text.contains("RIFF"), "{text}");
    }

    #[test]
    fn what_two_readers_might_read_differently_is_refused() {
        let form = |part: &str| format!("--x\r\n{part}\r\n--x--\r\n");
        let cases = [
            String::new(),
            "--x".into(),
            "no\r\nboundary".into(),
            form("Content-Disposition: form-data; name=\"a\""),
            form("Content-Disposition: attachment; name=\"a\"\r\n\r\nx"),
            form("Content-Disposition: form-data\r\n\r\nx"),
            form("Content-Disposition: form-data; name=\"a\"; name=\"model\"\r\n\r\nx"),
            form("Content-Disposition: form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"b\"\r\n\r\nx"),
            form("Content-Disposition: form-data; name=\"a\\\"b\"\r\n\r\nx"),
            form("Content-Disposition: form-data; name=\"a\" model\r\n\r\nx"),
            "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n--x".into(),
            "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n--xy\r\n--x--".into(),
        ];
        for body in cases {
            assert!(Form::parse(body.as_bytes()).is_err(), "{body}");
        }
        let again = b"\r\n--x1\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nb\r\n--x1--";
        let twice = [&FORM[..FORM.len() - 8], again.as_slice()].concat();
        let mut form = Form::parse(&twice).expect("a form");
        assert_eq!(form.text("model").expect_err("twice").field.as_deref(), Some("model"));
        form.set("model", "one");
        assert_eq!(form.text("model"), Ok(Some("one")));
        assert_eq!(form.parts.len(), 2);
    }
}
