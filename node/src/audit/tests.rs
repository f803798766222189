//! A log under tampering, crashes and failures.

use super::*;
use serde_json::json;
use spillway_ledger::NodeId;
use tempfile::TempDir;

struct Bench {
    folder: TempDir,
    key: SecretKey,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), key: SecretKey::generate([5; 32]) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> Arc<Store> {
        Arc::new(Store::open(self.path("node.redb")).expect("a store"))
    }

    fn open(&self) -> Result<AuditLog, AuditError> {
        AuditLog::open(self.folder.path(), self.store(), self.key.clone(), Arc::new(Metrics::new()))
    }

    fn node(&self) -> NodeId {
        NodeId(self.key.public())
    }

    fn verify(&self, anchors: &[(Head, &'static str)]) -> Result<Scan, Fault> {
        verify(self.folder.path(), &self.node(), anchors)
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.path(LOG_FILE)).expect("a log").lines().map(str::to_owned).collect()
    }

    fn put(&self, lines: &[String]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(self.path(LOG_FILE), text).expect("written");
    }
}

fn deed(what: &str) -> Deed {
    let who = Who { with: "admin".into(), from: Some("127.0.0.1:9".into()), agent: Some("test".into()) };
    Deed { who, action: "key.update", what: what.into() }
}

async fn act(log: &AuditLog, what: &str) -> Result<u32, ApiError> {
    let done = Done { value: 7, what: None, before: json!({"budget_micro": 1}), after: json!({"budget_micro": 2}) };
    log.act(deed(what), async { Ok(done) }).await
}

async fn five(bench: &Bench) -> Head {
    let log = bench.open().expect("a log");
    for number in 1..=5 {
        act(&log, &format!("key {number}")).await.expect("done");
    }
    log.head()
}

#[tokio::test]
async fn actions_have_lines_that_name_who_what_and_how_it_changed() {
    let bench = Bench::new();
    let log = bench.open().expect("a log");
    assert_eq!(act(&log, "key 1").await.expect("done"), 7);
    let refused = log.act::<u32>(deed("key 2"), async { Err(ApiError::new(404, "key_not_found", "no")) }).await;
    assert_eq!(refused.expect_err("refused").code, "key_not_found");
    log.note("config.change", "spillway.toml", Value::Null, json!({"gateway": "x"})).expect("noted");
    let mut records = Vec::new();
    scan(File::open(bench.path(LOG_FILE)).expect("a log"), |record, _| records.push(record.clone())).expect("holds");
    let told: Vec<_> = records.iter().map(|it| (it.seq, it.what.as_str(), it.result.as_str())).collect();
    assert_eq!(told, [(1, "key 1", "done"), (2, "key 2", "refused: key_not_found"), (3, "spillway.toml", "done")]);
    assert_eq!((&records[0].before, &records[0].after), (&json!({"budget_micro": 1}), &json!({"budget_micro": 2})));
    assert_eq!((&records[0].who.from, &records[2].who.with), (&Some("127.0.0.1:9".to_owned()), &"node".to_owned()));
    assert_eq!(log.lines(0, 2).expect("read").0.len(), 2);
    let (_, behind) = log.lines(0, 2).expect("read");
    assert_eq!(log.lines(behind + 1, 9).expect_err("in a line").kind(), io::ErrorKind::InvalidInput);
    assert_eq!(log.lines(1 << 40, 9).expect("behind the end"), (Vec::new(), 1 << 40));
    assert_eq!(log.lines(behind, 9).expect("read").0, [bench.lines()[2].clone()]);
}

/// What is done to a log's lines, and how the finding begins.
type Tampering = (&'static str, fn(&mut Vec<String>), &'static str);

#[tokio::test]
async fn every_tampering_is_found() {
    let cases: [Tampering; 10] = [
        (
            "changed",
            |lines| lines[2] = lines[2].replace("\"budget_micro\":2", "\"budget_micro\":3"),
            "line 3: was changed",
        ),
        ("first changed", |lines| lines[0] = lines[0].replace("key 1", "key 9"), "line 1: was changed"),
        ("last changed", |lines| lines[4] = lines[4].replace("key 5", "key 9"), "line 5: was changed"),
        ("removed", |lines| drop(lines.remove(2)), "line 3: does not follow"),
        ("first removed", |lines| drop(lines.remove(0)), "line 1: does not follow"),
        ("swapped", |lines| lines.swap(1, 2), "line 2: does not follow"),
        ("doubled", |lines| lines.insert(2, lines[1].clone()), "line 3: does not follow"),
        ("cut", |lines| lines.truncate(3), "ends after line 3"),
        ("emptied", Vec::clear, "ends after line 0"),
        ("garbage", |lines| lines[1] = "{}".into(), "line 2: is no record"),
    ];
    for (what, tamper, says) in cases {
        let bench = Bench::new();
        five(&bench).await;
        assert_eq!(bench.verify(&[]).expect("untouched").head.seq, 5, "{what}");
        let mut lines = bench.lines();
        tamper(&mut lines);
        bench.put(&lines);
        let fault = bench.verify(&[]).expect_err(what).to_string();
        assert!(fault.contains(says), "{what}: {fault}");
        assert!(bench.open().is_err(), "{what}: a node does not write behind it");
    }
}

/// A log that was chained anew, by somebody without the node's key, or with an old head put back beside it.
#[tokio::test]
async fn a_log_that_was_written_anew_is_found_by_its_heads() {
    let bench = Bench::new();
    let old_head = {
        let log = bench.open().expect("a log");
        act(&log, "key 1").await.expect("done");
        fs::read(bench.path(HEAD_FILE)).expect("a head")
    };
    let log = bench.open().expect("a log");
    act(&log, "key 2").await.expect("done");
    let head = log.head();
    drop(log);
    let whole = bench.lines();
    // The last line forged, and well chained.
    let mut forged: AuditRecord = serde_json::from_str(&whole[1]).expect("a record");
    forged.what = "key 3".into();
    bench.put(&[whole[0].clone(), forged.seal()]);
    assert!(bench.verify(&[]).expect_err("forged").to_string().contains("line 2: is another one than the signed head"));
    assert!(matches!(bench.open(), Err(AuditError::Fault(Fault::Rewritten { line: 2, .. }))));
    // A line added, well chained.
    let mut added: AuditRecord = serde_json::from_str(&whole[1]).expect("a record");
    (added.seq, added.prev) = (3, head.hash);
    bench.put(&[whole[0].clone(), whole[1].clone(), added.seal()]);
    assert!(matches!(bench.verify(&[]), Err(Fault::Added { has: 3, seq: 2 })));
    assert!(matches!(bench.open(), Err(AuditError::Fault(Fault::Added { .. }))));
    // Cut, and the head from before the cut put back: the chain and the signature hold. A head from elsewhere tells.
    bench.put(&whole[..1]);
    fs::write(bench.path(HEAD_FILE), &old_head).expect("written");
    assert_eq!(bench.verify(&[]).expect("all that these two files can tell").head.seq, 1);
    let fault = bench.verify(&[(head, "a SIEM")]).expect_err("cut").to_string();
    assert!(fault.contains("where a SIEM says that there were 2"), "{fault}");
    assert!(matches!(bench.open(), Err(AuditError::Fault(Fault::Truncated { has: 1, seq: 2, .. }))), "the store tells");
    assert_eq!(kept_head(&bench.store()).expect("read"), Some(head));
    // Another node's signature.
    bench.put(&whole);
    let stranger = SignedHead::new(head, 1, &SecretKey::generate([6; 32]));
    fs::write(bench.path(HEAD_FILE), serde_json::to_vec(&stranger).expect("JSON")).expect("written");
    assert!(matches!(bench.verify(&[]), Err(Fault::Head(_))));
    assert!("2:zz".parse::<Head>().is_err() && head.to_string().parse::<Head>() == Ok(head));
}

#[tokio::test]
async fn a_crash_at_any_moment_leaves_a_line_for_what_was_begun() {
    let bench = Bench::new();
    let log = bench.open().expect("a log");
    act(&log, "key 1").await.expect("done");
    let before = bench.lines();
    // It stopped before its line was written: there is one at the next start.
    let inner = Arc::clone(&log.0);
    let pending =
        |what: &str| Pending { time_ms: 1, who: deed("").who, action: "key.update".into(), what: what.into() };
    inner.begin(pending("key 2")).await.expect("begun");
    drop((log, inner));
    // And in the middle of writing it.
    let mut torn = fs::read(bench.path(LOG_FILE)).expect("a log");
    torn.extend_from_slice(b"{\"seq\":2,\"time_ms\":1");
    fs::write(bench.path(LOG_FILE), torn).expect("written");
    let log = bench.open().expect("goes on");
    let lines = bench.lines();
    assert_eq!((lines.len(), &lines[0]), (2, &before[0]));
    assert!(lines[1].contains(r#""what":"key 2","result":"unknown""#), "{}", lines[1]);
    drop(log);
    assert_eq!(bench.open().expect("goes on").head().seq, 2, "once only");
    bench.verify(&[]).expect("holds");

    // It stopped behind the line, before the store was told of it.
    let log = bench.open().expect("a log");
    let (inner, head) = (Arc::clone(&log.0), log.head());
    inner.begin(pending("key 3")).await.expect("begun");
    drop((log, inner));
    let (seq, time_ms, prev, hash) = (3, 1, head.hash, head.hash);
    let Pending { who, action, what, .. } = pending("key 3");
    let (result, before, after) = ("done".into(), Value::Null, Value::Null);
    let mut written = AuditRecord { seq, time_ms, who, action, what, result, before, after, prev, hash };
    let mut lines = bench.lines();
    lines.push(written.seal());
    bench.put(&lines);
    let log = bench.open().expect("goes on");
    assert_eq!(log.head(), Head { seq: 3, hash: written.hash });
    act(&log, "key 4").await.expect("done");
    drop(log);
    assert_eq!(bench.verify(&[]).expect("holds").head.seq, 4);
}

#[tokio::test]
async fn a_lost_log_is_begun_anew_only_by_saying_so() {
    let bench = Bench::new();
    let head = five(&bench).await;
    assert!(restart(bench.folder.path(), bench.store(), bench.key.clone(), "lost").is_err(), "it is there");
    fs::remove_file(bench.path(LOG_FILE)).expect("removed");
    assert!(bench.open().is_err());
    restart(bench.folder.path(), bench.store(), bench.key.clone(), "the disk broke").expect("begun");
    let line = &bench.lines()[0];
    assert!(line.contains(&head.hash.to_string()) && line.contains("the disk broke"), "{line}");
    assert_eq!(bench.open().expect("goes on").head().seq, 1);
    bench.verify(&[]).expect("holds");
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_action_without_a_line() {
    let bench = Bench::new();
    let log = bench.open().expect("a log");
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (go, may_go) = tokio::sync::oneshot::channel::<()>();
    let work = async move {
        begun.send(()).expect("awaited");
        may_go.await.expect("told");
        Ok(Done { value: (), what: None, before: Value::Null, after: Value::Null })
    };
    let acting = log.clone();
    let caller = tokio::spawn(async move { acting.act(deed("key 1"), work).await });
    begins.await.expect("begun");
    caller.abort();
    let _ = caller.await;
    let mut appended = log.watch();
    go.send(()).expect("it goes on");
    appended.wait_for(|head| head.seq == 1).await.expect("a line");
    assert!(bench.lines()[0].contains(r#""result":"done""#));
}

#[cfg(unix)]
#[test]
fn the_log_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new();
    let _log = bench.open().expect("a new log");
    assert_eq!(fs::metadata(bench.path(LOG_FILE)).expect("there").permissions().mode() & 0o777, 0o600);
}
