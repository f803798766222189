//! HTML that is XML too, and the frame of a report page.
//! Invariant: every element that is opened is closed, and whatever text is handed in stays text: a name from a user's file
//! cannot become markup. The page asks nobody for anything: no script, no font, no picture from elsewhere.

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};

/// Attributes of an element. Names are ours; values may be anybody's.
pub(super) type Attributes<'a> = &'a [(&'static str, &'a str)];

/// Markup being written.
pub(super) struct Markup {
    writer: Writer<Vec<u8>>,
    open: Vec<&'static str>,
}

impl Markup {
    fn write(&mut self, event: Event<'_>) {
        self.writer.write_event(event).expect("memory can be written to");
    }

    fn start(tag: &'static str, attributes: Attributes<'_>) -> BytesStart<'static> {
        let mut start = BytesStart::new(tag);
        for (name, value) in attributes {
            start.push_attribute((*name, &*plain(value)));
        }
        start
    }

    /// Begins an element.
    pub(super) fn open(&mut self, tag: &'static str, attributes: Attributes<'_>) -> &mut Self {
        self.write(Event::Start(Self::start(tag, attributes)));
        self.open.push(tag);
        self
    }

    /// Ends the element that was begun last.
    pub(super) fn close(&mut self) -> &mut Self {
        let tag = self.open.pop().expect("something is open");
        self.write(Event::End(BytesEnd::new(tag)));
        self
    }

    /// Text, whatever is in it.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.write(Event::Text(BytesText::new(&plain(text))));
        self
    }

    /// An element with text alone.
    pub(super) fn leaf(&mut self, tag: &'static str, attributes: Attributes<'_>, text: &str) -> &mut Self {
        self.open(tag, attributes).text(text).close()
    }

    /// An element with nothing in it: one of SVG's, or one that HTML never closes (`meta`).
    pub(super) fn shape(&mut self, tag: &'static str, attributes: Attributes<'_>) -> &mut Self {
        self.write(Event::Empty(Self::start(tag, attributes)));
        self
    }
}

/// Text without the characters that XML has no place for.
fn plain(text: &str) -> String {
    let odd = |letter: char| {
        (letter.is_control() && !matches!(letter, '\n' | '\t')) || matches!(letter, '\u{fffe}' | '\u{ffff}')
    };
    text.chars().map(|letter| if odd(letter) { '\u{fffd}' } else { letter }).collect()
}

/// A whole page: `title` above, `body` below.
pub(super) fn page(title: &str, body: impl FnOnce(&mut Markup)) -> String {
    let mut markup = Markup { writer: Writer::new(Vec::new()), open: Vec::new() };
    markup.write(Event::DocType(BytesText::new("html")));
    markup.open("html", &[("lang", "en"), ("xmlns", "http://www.w3.org/1999/xhtml")]);
    markup.open("head", &[]);
    markup.shape("meta", &[("charset", "utf-8")]);
    markup.shape("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]);
    let nothing = "default-src 'none'; style-src 'unsafe-inline'";
    markup.shape("meta", &[("http-equiv", "Content-Security-Policy"), ("content", nothing)]);
    markup.leaf("title", &[], title);
    markup.leaf("style", &[], STYLE);
    markup.close().open("body", &[]).open("main", &[]);
    body(&mut markup);
    markup.close().close().close();
    assert!(markup.open.is_empty(), "{:?} is still open", markup.open);
    String::from_utf8(markup.writer.into_inner()).expect("it was made of strings")
}

/// One style sheet for all pages. HTML reads it as it is, XML reads entities in it: so it has no `<`, `>`, `&` or quotes.
const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_style_sheet_reads_alike_as_html_and_as_xml() {
        assert!(!STYLE.contains(['<', '>', '&', '"', '\'']));
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
    }

    #[test]
    fn text_stays_text() {
        let hostile = "</title><script>alert(1)</script>&amp;\"'\u{0}\u{1b}\u{ffff}";
        let page = page(hostile, |markup| {
            markup.leaf("p", &[("class", hostile)], hostile);
        });
        let safe = "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;&quot;&apos;\u{fffd}\u{fffd}\u{fffd}";
        assert!(page.contains(&format!("<title>{safe}</title>")), "{page}");
        assert!(page.contains(&format!("<p class=\"{safe}\">{safe}</p>")), "{page}");
        assert!(!page.contains("<script"));
    }
}
