//! The batch as comma-separated values, for spreadsheets and processors that take no ISO 20022.
//! Invariant: the format is RFC 4180's, and no cell is a formula to a spreadsheet, whatever a payee calls itself.

use super::batch::Batch;

/// The columns.
const HEADINGS: [&str; 14] = [
    "payout",
    "end_to_end_id",
    "name",
    "iban",
    "bic",
    "country",
    "currency",
    "amount",
    "rate",
    "credits_micro",
    "remainder_micro",
    "account",
    "block",
    "time_ms",
];

/// The batch's lines under their headings. Every row ends with CRLF, as the RFC has it.
#[must_use]
pub fn to_csv(batch: &Batch) -> String {
    let mut out = String::new();
    row(&mut out, HEADINGS);
    for line in &batch.lines {
        let (waiting, payee) = (&line.waiting, &line.payee);
        let cells = [
            waiting.payout.to_string(),
            line.end_to_end(),
            payee.name.clone(),
            payee.iban.to_string(),
            payee.bic.as_ref().map_or_else(String::new, |bic| bic.as_str().into()),
            payee.country.as_str().into(),
            payee.currency.to_string(),
            payee.currency.text(line.minor),
            batch.debtor.rate.to_string(),
            waiting.amount_micro.micro().to_string(),
            line.remainder.micro().to_string(),
            waiting.account.to_string(),
            waiting.height.to_string(),
            waiting.time_ms.to_string(),
        ];
        row(&mut out, cells.iter().map(String::as_str));
    }
    out
}

fn row<'a>(out: &mut String, cells: impl IntoIterator<Item = &'a str>) {
    for (index, cell) in cells.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_cell(out, cell);
    }
    out.push_str("\r\n");
}

/// A cell, quoted where it must be. One that a spreadsheet would run as a formula gets an apostrophe in front.
/// Source: RFC 4180, section 2; OWASP "CSV Injection".
fn push_cell(out: &mut String, cell: &str) {
    let formula = cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']);
    let quoted = formula || cell.contains([',', '"', '\r', '\n', ';', '\t']) || cell.trim() != cell;
    if !quoted {
        return out.push_str(cell);
    }
    out.push('"');
    if formula {
        out.push('\'');
    }
    out.push_str(&cell.replace('"', "\"\""));
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::{debtor, payee, waiting};
    use super::*;

    #[test]
    fn cells_are_quoted_and_never_formulas() {
        for (cell, want) in [
            ("", ""),
            ("plain", "plain"),
            ("Müller, Ada", "\"Müller, Ada\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("=1+1", "\"'=1+1\""),
            ("+49", "\"'+49\""),
            ("-1", "\"'-1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("\tx", "\"'\tx\""),
            ("＝1", "\"'＝1\""),
            ("=HYPERLINK(\"x\")", "\"'=HYPERLINK(\"\"x\"\")\""),
            (" x", "\" x\""),
        ] {
            let mut out = String::new();
            push_cell(&mut out, cell);
            assert_eq!(out, want);
        }
    }

    #[test]
    fn a_row_has_a_cell_for_each_heading() {
        let payee = payee(1, "+Ada, Müller", "NL91ABNA0417164300", Some("ABNANL2A"), "EUR");
        let (batch, _) = Batch::new(debtor("EUR", "0.5"), vec![waiting(3, 2_460_007, &payee)], [payee], true);
        let text = to_csv(&batch.expect("it can be paid"));
        let lines: Vec<&str> = text.split("\r\n").collect();
        let [headings, row, ""] = lines[..] else { panic!("{text}") };
        assert_eq!(headings.split(',').count(), HEADINGS.len());
        let row = row.replace("\"'+Ada, Müller\"", "NAME");
        let cells: Vec<&str> = row.split(',').collect();
        assert_eq!(cells.len(), HEADINGS.len());
        assert_eq!(
            cells[2..11],
            ["NAME", "NL91ABNA0417164300", "ABNANL2A", "NL", "EUR", "1.23", "0.5", "2460007", "7"]
        );
    }
}
