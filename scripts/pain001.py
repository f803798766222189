"""Makes payment files with the spillway binary and validates them; see pain001.sh, which runs this.

The cases: one payment; a thousand; names in several alphabets' letters and at their greatest length; the least and the
greatest amount; currencies with no, two and three places; payees inside and outside SEPA, with and without a BIC. And
that the validators are awake: damaged files must fail.
"""

import csv
import hashlib
import io
import json
import pathlib
import subprocess
import sys

import lxml.etree
import sepaxml
import xmlschema

SPILLWAY, WORK = sys.argv[1], pathlib.Path(sys.argv[2])
XSD = pathlib.Path(sepaxml.__file__).parent / "schemas" / "pain.001.001.09.xsd"
NAMESPACE = {"p": "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"}

LXML = lxml.etree.XMLSchema(lxml.etree.parse(str(XSD)))
XMLSCHEMA = xmlschema.XMLSchema(str(XSD))

DE, NL, FR = "DE89370400440532013000", "NL91ABNA0417164300", "FR1420041010050500013M02606"
AE, KW, GB = "AE070331234567890123456", "KW81CBKU0000000000001234560101", "GB29NWBK60161331926819"


def spillway(*arguments):
    """Runs the binary and gives what it printed, which is JSON."""
    done = subprocess.run([SPILLWAY, "ledger", *map(str, arguments), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return json.loads(done.stdout)


def payee(folder, number, name, iban, bic, country, currency):
    """A payee file; its digest."""
    out = folder / f"payee-{number}.json"
    bank = ["--bic", bic] if bic else []
    return spillway(
        "payee", "new", "--name", name, "--iban", iban, *bank, "--country", country, "--currency", currency, "--out", out
    )["payee"]


def export(case, debtor, people, amounts, *more):
    """The exported XML, CSV rows and summary of payouts to `people`, cycled over `amounts` in micro-credits."""
    folder = WORK / case
    (folder / "payees").mkdir(parents=True)
    digests = [payee(folder / "payees", n, *person, debtor["currency"]) for n, person in enumerate(people)]
    waiting = [
        {
            "payout": hashlib.sha256(f"{case}{n}".encode()).hexdigest(),
            "account": hashlib.sha256(b"account").hexdigest(),
            "amount_micro": amount,
            "payee": digests[n % len(digests)],
            "height": n + 1,
            "time_ms": 1_700_000_000_000 + n,
        }
        for n, amount in enumerate(amounts)
    ]
    # An account is a public key, so the binary wants a real one: the base point of ed25519.
    for row in waiting:
        row["account"] = "58" + "66" * 31
    (folder / "list.json").write_text(json.dumps({"payouts": waiting, "height": len(waiting)}))
    (folder / "debtor.json").write_text(json.dumps(debtor))
    common = ["payouts", "export", "--payees", folder / "payees", "--debtor", folder / "debtor.json"]
    common += ["--list", folder / "list.json", "--date", "2026-12-01", *more]
    summary = spillway(*common, "--format", "pain001", "--out", folder / "out.xml")
    spillway(*common, "--format", "csv", "--out", folder / "out.csv")
    with open(folder / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return (folder / "out.xml").read_bytes(), rows, summary


def valid(text):
    document = lxml.etree.fromstring(text)
    return LXML.validate(document) and XMLSCHEMA.is_valid(io.BytesIO(text))


def check(case, debtor, people, amounts, *more):
    text, rows, summary = export(case, debtor, people, amounts, *more)
    document = lxml.etree.fromstring(text)
    if not LXML.validate(document):
        sys.exit(f"{case}: lxml: {LXML.error_log}")
    XMLSCHEMA.validate(io.BytesIO(text))
    # Two files, one content: the sums, the ids and each amount agree.
    find = lambda path: [element.text for element in document.findall(path, NAMESPACE)]
    assert find(".//p:GrpHdr/p:NbOfTxs") == find(".//p:PmtInf/p:NbOfTxs") == [str(len(rows))] == [str(summary["payments"])]
    assert find(".//p:GrpHdr/p:CtrlSum") == find(".//p:PmtInf/p:CtrlSum") == [summary["total"]]
    assert find(".//p:EndToEndId") == [row["end_to_end_id"] for row in rows]
    assert find(".//p:InstdAmt") == [row["amount"] for row in rows]
    places = len(summary["total"].partition(".")[2])
    assert sum(round(float(row["amount"]) * 10**places) for row in rows) == round(float(summary["total"]) * 10**places)
    print(f"{case:<24} {len(rows):>5} payments of {summary['total']} {summary['currency']} in all: valid")
    return text


def debtor(currency, rate="1"):
    return {"name": "Spillway Föderation e.V.", "iban": DE, "bic": "COBADEFFXXX", "country": "DE", "currency": currency, "rate": rate}


ADA = ("Ada Müller", NL, None, "NL")
MANY = [
    ADA,
    ("Żółć & Łękołody Sp. z o.o.", FR, None, "FR"),
    ("Ÿ" * 70, DE, "COBADEFF", "DE"),
    ("O’Connor (Dublin), 4/5 + Co.: ‘ok’?", GB, None, "GB"),
    ("Þórður Ægisson ﬀ".replace("ﬀ", "ff"), NL, "ABNANL2A", "IS"),
    ("Zayed", AE, "EBILAEAD", "AE"),
]

one = check("one payment", debtor("EUR"), [ADA], [12_340_000])
check("a thousand", debtor("EUR"), MANY, [10_000 * (n + 1) for n in range(1000)])
check("least and greatest", debtor("EUR"), [ADA], [10_000, 999_999_999_990_000])
check("no minor unit", debtor("JPY", "150"), [("Zayed", AE, "EBILAEAD", "AE")], [1_000_000, 2_000_000])
check("three places", debtor("KWD", "0.307"), [("Noura", KW, "CBKUKWKW", "KW")], [1_000_000, 500_000_000])
check("rounded down", debtor("EUR", "0.9137"), [ADA], [1_234_567, 7_654_321], "--round-down")

# The validators see what is wrong.
for what, old, new in [
    ("a negative amount", b">12.34</InstdAmt>", b">-12.34</InstdAmt>"),
    ("six places", b">12.34</InstdAmt>", b">12.345678</InstdAmt>"),
    ("an id of 36", b"<EndToEndId>", b"<EndToEndId>x"),
    ("no currency", b' Ccy="EUR"', b""),
    ("an IBAN in small letters", b"NL91ABNA", b"nl91abna"),
    ("another method", b"<PmtMtd>TRF", b"<PmtMtd>XXX"),
]:
    assert old in one, what
    assert not valid(one.replace(old, new)), f"{what}: taken as valid"
print("damaged files are refused: the validators work")
