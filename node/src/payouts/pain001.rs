//! The batch as an ISO 20022 customer credit transfer, `pain.001.001.09`: what a bank takes as an order to pay.
//! Invariant: the text is valid under the schema and in SEPA's basic character set; counts and sums are those of the
//! lines. `scripts/pain001.sh` validates it against the schema itself.

use super::batch::{Batch, Line};
use super::date::{Date, moment};
use super::{Bic, Country, Iban};
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesEnd, BytesStart, BytesText, Event};

/// The schema's namespace.
const NAMESPACE: &str = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09";

/// Elements as they are written.
struct Xml(Writer<Vec<u8>>);

impl Xml {
    fn event(&mut self, event: Event<'_>) {
        self.0.write_event(event).expect("writing to memory does not fail");
    }

    fn inside(&mut self, name: &str, body: impl FnOnce(&mut Self)) {
        self.with(BytesStart::new(name), body);
    }

    fn with(&mut self, start: BytesStart<'_>, body: impl FnOnce(&mut Self)) {
        let end = start.to_end().into_owned();
        self.event(Event::Start(start));
        body(self);
        self.event(Event::End(end));
    }

    fn leaf(&mut self, name: &str, text: &str) {
        self.event(Event::Start(BytesStart::new(name)));
        self.event(Event::Text(BytesText::new(text)));
        self.event(Event::End(BytesEnd::new(name)));
    }

    /// Who pays or is paid.
    fn party(&mut self, element: &str, name: &str, country: &Country) {
        self.inside(element, |xml| {
            xml.leaf("Nm", name);
            xml.inside("PstlAdr", |xml| xml.leaf("Ctry", country.as_str()));
        });
    }

    fn account(&mut self, element: &str, iban: &Iban) {
        self.inside(element, |xml| xml.inside("Id", |xml| xml.leaf("IBAN", iban.as_str())));
    }

    /// A bank; where no code was given, the account number says which it is.
    fn bank(&mut self, element: &str, bic: Option<&Bic>) {
        self.inside(element, |xml| {
            xml.inside("FinInstnId", |xml| match bic {
                Some(bic) => xml.leaf("BICFI", bic.as_str()),
                None => xml.inside("Othr", |xml| xml.leaf("Id", "NOTPROVIDED")),
            });
        });
    }
}

/// The file's text: one order to pay every line of `batch` on `date`, made at `created_ms` (Unix milliseconds).
#[must_use]
pub fn to_pain001(batch: &Batch, date: Date, created_ms: u64) -> String {
    let mut xml = Xml(Writer::new_with_indent(Vec::new(), b' ', 1));
    xml.event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)));
    let mut document = BytesStart::new("Document");
    document.push_attribute(("xmlns", NAMESPACE));
    xml.with(document, |xml| {
        xml.inside("CstmrCdtTrfInitn", |xml| {
            header(xml, batch, created_ms);
            payment(xml, batch, date);
        });
    });
    let mut text = String::from_utf8(xml.0.into_inner()).expect("only text was written");
    text.push('\n');
    text
}

fn counts(xml: &mut Xml, batch: &Batch) {
    xml.leaf("NbOfTxs", &batch.lines.len().to_string());
    xml.leaf("CtrlSum", &batch.debtor.currency.text(batch.total_minor()));
}

fn header(xml: &mut Xml, batch: &Batch, created_ms: u64) {
    xml.inside("GrpHdr", |xml| {
        xml.leaf("MsgId", &batch.message_id());
        xml.leaf("CreDtTm", &moment(created_ms));
        counts(xml, batch);
        xml.inside("InitgPty", |xml| xml.leaf("Nm", &batch.debtor_name));
    });
}

fn payment(xml: &mut Xml, batch: &Batch, date: Date) {
    let debtor = &batch.debtor;
    xml.inside("PmtInf", |xml| {
        // The message has one order, so they may share the id.
        xml.leaf("PmtInfId", &batch.message_id());
        xml.leaf("PmtMtd", "TRF");
        counts(xml, batch);
        xml.inside("ReqdExctnDt", |xml| xml.leaf("Dt", &date.to_string()));
        xml.party("Dbtr", &batch.debtor_name, &debtor.country);
        xml.account("DbtrAcct", &debtor.iban);
        xml.bank("DbtrAgt", debtor.bic.as_ref());
        for line in &batch.lines {
            transfer(xml, batch, line);
        }
    });
}

fn transfer(xml: &mut Xml, batch: &Batch, line: &Line) {
    let sepa = batch.is_sepa(line);
    let currency = batch.debtor.currency;
    xml.inside("CdtTrfTxInf", |xml| {
        xml.inside("PmtId", |xml| xml.leaf("EndToEndId", &line.end_to_end()));
        if sepa {
            xml.inside("PmtTpInf", |xml| xml.inside("SvcLvl", |xml| xml.leaf("Cd", "SEPA")));
        }
        xml.inside("Amt", |xml| {
            let mut amount = BytesStart::new("InstdAmt");
            amount.push_attribute(("Ccy", currency.code()));
            let text = currency.text(line.minor);
            xml.with(amount, |xml| xml.event(Event::Text(BytesText::new(&text))));
        });
        // Within SEPA each side pays its own bank; elsewhere the costs are shared.
        xml.leaf("ChrgBr", if sepa { "SLEV" } else { "SHAR" });
        if let Some(bic) = &line.payee.bic {
            xml.bank("CdtrAgt", Some(bic));
        }
        xml.party("Cdtr", &line.name, &line.payee.country);
        xml.account("CdtrAcct", &line.payee.iban);
        xml.inside("RmtInf", |xml| xml.leaf("Ustrd", &format!("Spillway payout {}", line.end_to_end())));
    });
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::{debtor, payee, waiting};
    use super::*;
    use quick_xml::Reader;

    fn batch() -> Batch {
        let ada = payee(1, "Ada Müller & Söhne", "NL91ABNA0417164300", None, "EUR");
        let bob = payee(2, "Bob", "AE070331234567890123456", Some("EBILAEAD"), "EUR");
        let waiting = vec![waiting(1, 12_340_000, &ada), waiting(2, 100_010_000, &bob)];
        Batch::new(debtor("EUR", "1"), waiting, [ada, bob], false).0.expect("both can be paid")
    }

    /// Every text with the names of the elements around it.
    fn texts(xml: &str) -> Vec<(String, String)> {
        let mut reader = Reader::from_str(xml);
        reader.config_mut().trim_text(true);
        let (mut path, mut found) = (Vec::new(), Vec::new());
        loop {
            match reader.read_event().expect("well-formed") {
                Event::Start(start) => path.push(start.name().as_ref().to_owned()),
                Event::End(_) => drop(path.pop()),
                Event::Text(text) => found.push((path.join("/"), text.to_string())),
                Event::Eof => return found,
                _ => {}
            }
        }
    }

    #[test]
    fn counts_sums_and_lines_are_those_of_the_batch() {
        let batch = batch();
        let xml = to_pain001(&batch, "2026-12-01".parse().expect("a day"), 1_709_210_096_789);
        let texts = texts(&xml);
        let all = |end: &str| -> Vec<&str> {
            texts.iter().filter(|(path, _)| path.ends_with(end)).map(|(_, text)| text.as_str()).collect()
        };
        assert_eq!(all("GrpHdr/MsgId"), [batch.message_id()]);
        assert_eq!(all("GrpHdr/CreDtTm"), ["2024-02-29T12:34:56Z"]);
        assert_eq!(all("/NbOfTxs"), ["2", "2"]);
        assert_eq!(all("/CtrlSum"), ["112.35", "112.35"]);
        assert_eq!(all("ReqdExctnDt/Dt"), ["2026-12-01"]);
        assert_eq!(all("Dbtr/Nm"), ["Spillway Foderation"]);
        let ends: Vec<String> = batch.lines.iter().map(Line::end_to_end).collect();
        assert_eq!(all("PmtId/EndToEndId"), ends);
        let mut amounts = all("Amt/InstdAmt");
        amounts.sort_unstable();
        assert_eq!(amounts, ["100.01", "12.34"]);
        assert_eq!(xml.matches("<InstdAmt Ccy=\"EUR\">").count(), 2);
        let mut names = all("Cdtr/Nm");
        names.sort_unstable();
        assert_eq!(names, ["Ada Muller + Sohne", "Bob"]);
        assert_eq!(all("SvcLvl/Cd"), ["SEPA"], "only the one inside SEPA");
        let mut charges = all("CdtTrfTxInf/ChrgBr");
        charges.sort_unstable();
        assert_eq!(charges, ["SHAR", "SLEV"]);
        assert_eq!(all("DbtrAgt/FinInstnId/BICFI"), ["COBADEFFXXX"]);
        assert_eq!(all("CdtrAgt/FinInstnId/BICFI"), ["EBILAEAD"]);
    }

    #[test]
    fn every_text_is_in_the_basic_set_and_within_its_limit() {
        let long = payee(3, &"Ÿ".repeat(70), "NL91ABNA0417164300", None, "EUR");
        let (batch, _) = Batch::new(debtor("EUR", "1"), vec![waiting(1, 999_999_999_990_000, &long)], [long], false);
        let xml = to_pain001(&batch.expect("it can be paid"), "2026-12-01".parse().expect("a day"), 0);
        for (path, text) in texts(&xml) {
            let max = match path.rsplit('/').next().expect("a name") {
                "MsgId" | "PmtInfId" | "EndToEndId" => 35,
                "Nm" => 70,
                "Ustrd" => 140,
                "IBAN" => 34,
                _ => 35,
            };
            assert!((1..=max).contains(&text.chars().count()), "{path}: {text}");
            let basic = |c: char| c.is_ascii_alphanumeric() || " /-?:().,'+".contains(c);
            assert!(text.chars().all(basic), "{path}: {text}");
        }
    }
}
