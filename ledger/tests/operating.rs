//! What goes wrong in operation: a full disk, a folder or file that may not be written, a second process, the wrong file.
//! Each is a clear error that changes nothing, and when it is over the ledger is whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use spillway_ledger::chain::{GENESIS_FILE, LEDGER_FILE, TIP_FILE};
use spillway_ledger::*;

const START_MS: u64 = 1_700_000_000_000;

fn key(number: u8) -> SecretKey {
    SecretKey::generate([number; 32])
}

fn genesis(name: &str) -> Genesis {
    Genesis {
        name: name.to_owned(),
        time_ms: START_MS,
        issuer: key(1).account(),
        committee: vec![key(2).public()],
        treasury: key(3).account(),
        validators: key(4).account(),
        split: Split::default(),
        grace_ms: 1_000,
        mint_max_per_epoch: Credits::new(1 << 60),
        epoch_blocks: 1_000,
        validator_bond: Credits::new(1_000),
        unbond_ms: 1_000,
        payout_min: Credits::new(1),
        bootstrap: Vec::new(),
    }
}

fn solo(folder: &Path) -> Result<Solo, OpenError> {
    Solo::open(folder, &genesis("test"), key(2))
}

/// Makes a block of `count` mints.
fn mint(solo: &mut Solo, count: u64) -> Result<Committed, FollowError> {
    for _ in 0..count {
        let nonce = solo.next_nonce(&key(1).account());
        let mut business = [0; 16];
        business[..8].copy_from_slice(&nonce.to_le_bytes());
        let reference = format!("deposit {nonce}");
        let action = Action::Mint { to: key(5).account(), amount: Credits::new(10), reference };
        let (network, expires_height) = (genesis("test").network_id(), solo.height() + 100);
        let entry = Entry { network, account: key(1).account(), nonce, expires_height, business, action };
        solo.submit(Signed::sign(entry, &key(1))).expect("queued");
    }
    Ok(solo.produce(START_MS)?.expect("mints can be applied"))
}

/// A ledger of three blocks, closed.
fn written() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut solo = solo(folder.path()).expect("opens");
    for _ in 0..3 {
        mint(&mut solo, 2).expect("written");
    }
    folder
}

/// Every file in `folder`, and what is in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder).expect("a folder").map(|file| file.expect("read").path());
    files.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(&path).unwrap_or_default())).collect()
}

/// Starts this binary's [`child`] to do `what` with `folder`, behind a command that changes what it may do.
fn start(before: &[&str], what: &str, folder: &Path) -> std::process::Child {
    let this = std::env::current_exe().expect("this test binary");
    let words = before.iter().map(Into::into).chain([this.into_os_string()]).collect::<Vec<std::ffi::OsString>>();
    Command::new(&words[0])
        .args(&words[1..])
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("SPILLWAY_TEST_DO", what)
        .env("SPILLWAY_TEST_FOLDER", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child")
}

/// What a child begins its lines with, so that they are told from the test harness' own.
const MARK: &str = "said: ";

/// What a child said, of the lines that begin with [`MARK`].
fn said(mut child: std::process::Child) -> Vec<String> {
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    let status = child.wait().expect("ended");
    assert!(status.success(), "no panic, no abort: {status} {text}");
    // The test harness writes words of its own before them.
    text.lines().filter_map(|line| line.find(MARK).map(|at| line[at + MARK.len()..].to_owned())).collect()
}

/// The process that other tests start; alone it does nothing.
#[test]
#[ignore = "started by other tests"]
fn child() {
    let (Ok(what), Ok(folder)) = (std::env::var("SPILLWAY_TEST_DO"), std::env::var("SPILLWAY_TEST_FOLDER")) else {
        return;
    };
    let folder = Path::new(&folder);
    match what.as_str() {
        // Makes blocks until one fails, and then tries again.
        "fill" => {
            let mut solo = solo(folder).expect("opens");
            let error = loop {
                match mint(&mut solo, 200) {
                    Ok(_) => println!("said: {}", solo.height()),
                    Err(error) => break error,
                }
                assert!(solo.height() < 500, "the disk never fills up");
            };
            println!("said: {error}");
            println!("said: {}", solo.produce(START_MS).expect_err("it has stopped"));
        }
        "hold" => {
            let _solo = solo(folder).expect("opens");
            println!("said: held");
            let _until_the_parent_closes_it = std::io::stdin().read_to_end(&mut Vec::new());
        }
        "open" => {
            println!("said: {}", solo(folder).map_or_else(|error| error.to_string(), |solo| solo.height().to_string()));
            let verified = verify_folder(folder);
            println!(
                "said: {}",
                verified.map_or_else(|error| error.to_string(), |verified| verified.height.to_string())
            );
        }
        "probe" => println!("said: {}", fs::write(folder.join("probe"), "").is_ok()),
        other => panic!("unknown: {other}"),
    }
}

/// What must hold after the disk was full at block `acknowledged`: the ledger is whole, and goes on.
fn whole_again(folder: &Path, acknowledged: u64) {
    let verified = verify_folder(folder).expect("it verifies");
    // The block that failed may have come through or not; nobody was told that it had.
    assert!((acknowledged..=acknowledged + 1).contains(&verified.height), "{acknowledged}: {verified:?}");
    let mut solo = solo(folder).expect("it opens");
    assert_eq!((solo.height(), solo.tip()), (verified.height, verified.tip));
    mint(&mut solo, 2).expect("there is room again");
    let height = solo.height();
    drop(solo);
    assert_eq!(verify_folder(folder).expect("it verifies").height, height);
}

#[test]
fn a_file_that_may_not_grow_is_an_error_and_nothing_is_lost() {
    let folder = written();
    // In blocks of 512 or 1,024 bytes, as the shell has it.
    let limit = ["sh", "-c", "trap '' XFSZ; ulimit -f 600; exec \"$0\" \"$@\""];
    let said = said(start(&limit, "fill", folder.path()));
    let [heights @ .., error, after] = said.as_slice() else { panic!("{said:?}") };
    assert!(error.contains(LEDGER_FILE) && error.contains("File too large"), "{error}");
    assert_eq!(after, "an earlier write failed: open the ledger anew");
    let acknowledged = heights.last().map_or(3, |height| height.parse().expect("a height"));
    assert!(acknowledged > 3, "some blocks found room");
    whole_again(folder.path(), acknowledged);
}

/// A small disk of its own, taken down in the end.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None` where this process may not make one.
    fn new(megabytes: u32) -> Option<Disk> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Disk(folder))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_disk_is_an_error_and_nothing_is_lost() {
    let Some(disk) = Disk::new(2) else {
        println!("only the administrator may mount a small disk: a_file_that_may_not_grow covers the rest");
        return;
    };
    let folder = disk.0.path().join("books");
    let mut solo = solo(&folder).expect("opens");
    mint(&mut solo, 200).expect("there is room");
    let node = Store::open(disk.0.path().join("node.redb")).expect("opens");
    let put = |key: u8, bytes: usize| {
        let mut batch = Batch::new();
        batch.put(Table::Vouchers, [key], vec![key; bytes]);
        node.commit(batch)
    };
    put(1, 100).expect("there is room");
    let ballast = disk.0.path().join("ballast");
    let full = fs::write(&ballast, vec![1; 4 << 20]).expect_err("it is full");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let error = loop {
        match mint(&mut solo, 200) {
            Ok(_) => assert!(solo.height() < 500, "the disk never fills up"),
            Err(error) => break error,
        }
    };
    let acknowledged = solo.height();
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert!(matches!(solo.produce(START_MS), Err(FollowError::Halted)));
    drop(solo);
    let full = put(2, 1 << 20).expect_err("it is full").to_string();
    assert!(full.contains("node.redb") && full.contains("No space left on device"), "{full}");
    let after = put(3, 1).map_err(|error| error.to_string());
    assert!(after.is_err_and(|words| words.contains("open the store anew") || words.contains("No space left")));
    drop(node);
    // An auditor needs no room.
    assert!(verify_folder(&folder).expect("it verifies").height >= acknowledged);
    // A node may or may not find enough to open it; if not, it says why, and changes nothing.
    match self::solo(&folder) {
        Ok(solo) => assert!(solo.height() >= acknowledged),
        Err(error) => assert!(error.to_string().contains("No space left on device"), "{error}"),
    }
    let fresh = self::solo(&disk.0.path().join("another")).map(|_| ());
    assert!(matches!(&fresh, Err(OpenError::Store(StoreError::Io { .. }))), "{fresh:?}");
    fs::remove_file(&ballast).expect("removed");
    whole_again(&folder, acknowledged);
    let node = Store::open(disk.0.path().join("node.redb")).expect("opens");
    assert_eq!(node.get(Table::Vouchers, &[1]).expect("read"), Some(vec![1; 100]));
    assert_eq!(node.get(Table::Vouchers, &[2]).expect("read"), None, "all of a batch or none");
    self::solo(&disk.0.path().join("another")).expect("what was begun on a full disk is no obstacle");
}

fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the mode is set");
}

/// The command before a child for which the modes of files count, even if it is started by the administrator.
fn bound_by_modes() -> Option<&'static [&'static str]> {
    const UNPRIVILEGED: &[&str] = &["setpriv", "--bounding-set", "-dac_override,-dac_read_search"];
    for before in [&["env"] as &[&str], UNPRIVILEGED] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        chmod(folder.path(), 0o555);
        if Command::new(before[0]).arg("--version").output().is_err() {
            continue;
        }
        if said(start(before, "probe", folder.path())) == ["false"] {
            return Some(before);
        }
    }
    None
}

#[test]
fn what_may_not_be_written_is_not_and_can_be_verified() {
    let Some(before) = bound_by_modes() else {
        println!("every file may be written here whatever its mode: nothing to see");
        return;
    };
    let denied = "cannot be written: permission denied or read-only";
    // The modes of the folder and of the ledger; what a node says to it, what an auditor.
    let cases: [(u32, u32, &str, &str); 4] = [
        (0o755, 0o444, denied, "3"),
        (0o555, 0o444, denied, "3"),
        // No file has to be made: what may be written is.
        (0o555, 0o644, "3", "3"),
        (0o755, 0o000, denied, denied),
    ];
    for (folder_mode, file_mode, want_node, want_auditor) in cases {
        let folder = written();
        let before_files = files(folder.path());
        chmod(&folder.path().join(LEDGER_FILE), file_mode);
        chmod(folder.path(), folder_mode);
        let said = said(start(before, "open", folder.path()));
        chmod(folder.path(), 0o755);
        chmod(&folder.path().join(LEDGER_FILE), 0o644);
        let [node, auditor] = said.as_slice() else { panic!("{said:?}") };
        let what = format!("folder {folder_mode:o}, file {file_mode:o}: {said:?}");
        assert!(node.ends_with(want_node) && auditor.ends_with(want_auditor), "{what}");
        assert!(want_node == "3" || files(folder.path()) == before_files, "{what}: a file has changed");
        assert_eq!(verify_folder(folder.path()).expect("whole").height, 3);
    }
    let empty = tempfile::tempdir().expect("a temporary folder");
    chmod(empty.path(), 0o555);
    let said = said(start(before, "open", empty.path()));
    chmod(empty.path(), 0o755);
    assert!(said[0].ends_with(denied) && said[1].contains("has no genesis.json"), "{said:?}");
    assert!(files(empty.path()).is_empty());
}

#[test]
fn an_auditor_writes_nothing_even_after_a_kill() {
    let folder = written();
    let mut holder = solo(folder.path()).expect("opens");
    mint(&mut holder, 2).expect("written");
    // As a kill leaves it: copied while it is open.
    let copy = tempfile::tempdir().expect("a temporary folder");
    for (path, bytes) in files(folder.path()) {
        fs::write(copy.path().join(path.file_name().expect("a file")), bytes).expect("written");
    }
    let before = files(copy.path());
    let modified = |folder: &Path| -> Vec<_> {
        let files = fs::read_dir(folder).expect("a folder").map(|file| file.expect("read").metadata().expect("there"));
        files.map(|metadata| metadata.modified().expect("a time")).collect()
    };
    let times = modified(copy.path());
    let verified = verify_folder(copy.path()).expect("it verifies");
    assert_eq!((verified.height, verified.tip), (4, holder.tip()));
    assert!(files(copy.path()) == before && modified(copy.path()) == times, "not a byte, and no new file");
    // Several may read at once; while one does, nobody writes.
    let store = Store::open_read_only(copy.path().join(LEDGER_FILE)).expect("opens");
    assert_eq!(verify_folder(copy.path()), Ok(verified));
    let second = solo(copy.path()).map(|_| ());
    assert!(matches!(&second, Err(OpenError::Store(StoreError::InUse(_)))), "{second:?}");
    let mut batch = Batch::new();
    batch.put(Table::Meta, [1], [1]);
    assert!(matches!(store.commit(batch), Err(StoreError::ReadOnly(_))));
    assert_eq!(store.get(Table::Meta, &[1]).expect("read"), None);
    drop(store);
    assert_eq!(solo(copy.path()).expect("opens").height(), 4);
}

#[test]
fn a_second_process_is_kept_out_until_the_first_is_gone() {
    let folder = written();
    let mut first = start(&["env"], "hold", folder.path());
    let mut lines = BufReader::new(first.stdout.take().expect("piped")).lines();
    assert!(lines.any(|line| line.expect("text").ends_with("said: held")), "the first has it");
    let second = solo(folder.path()).map(|_| ());
    assert!(matches!(&second, Err(OpenError::Store(StoreError::InUse(_)))), "{second:?}");
    let words = verify_folder(folder.path()).expect_err("in use").to_string();
    assert!(words.contains("is in use: another node has it open"), "{words}");
    // Killed, it leaves no lock behind.
    first.kill().expect("SIGKILL");
    first.wait().expect("gone");
    assert_eq!(verify_folder(folder.path()).expect("it verifies").height, 3);
    assert_eq!(solo(folder.path()).expect("opens").height(), 3);
}

#[test]
fn a_lost_disk_is_made_good_from_a_followers_copy() {
    let (authority, follower, restored) = (tempfile::tempdir(), tempfile::tempdir(), tempfile::tempdir());
    let [authority, follower, restored] =
        [authority, follower, restored].map(|folder| folder.expect("a temporary folder"));
    let mut solo = self::solo(authority.path()).expect("opens");
    let mut copy = Follower::open(follower.path(), &genesis("test")).expect("opens");
    for number in 0..6 {
        let committed = mint(&mut solo, 5).expect("written");
        // The last block reached nobody.
        if number < 5 {
            copy.commit(committed.block).expect("taken");
        }
    }
    let lost = solo.blocks(6, 1).expect("read").remove(0);
    drop((solo, copy));
    fs::remove_dir_all(authority.path()).expect("the disk is gone");

    // The genesis and the blocks are all there is to it; the note is made anew.
    for name in [GENESIS_FILE, LEDGER_FILE] {
        fs::copy(follower.path().join(name), restored.path().join(name)).expect("copied");
    }
    let verified = verify_folder(restored.path()).expect("it verifies");
    let mut solo = self::solo(restored.path()).expect("opens");
    assert_eq!((solo.height(), solo.tip()), (5, verified.tip));
    assert_eq!(solo.book().balance(&key(5).account()), Credits::new(250));
    // What only the lost disk had is submitted again, and gets another place; who does have the lost block sees the
    // conflict, so the copy must be the highest that there is.
    let anew = mint(&mut solo, 3).expect("written").block;
    let mut copy = Follower::open(follower.path(), &genesis("test")).expect("opens");
    copy.commit(anew).expect("it follows");
    assert!(matches!(copy.commit(lost), Err(FollowError::Conflict { height: 6 })));

    // A follower that lost its own needs no copy: it fetches every block from another.
    let fetched = tempfile::tempdir().expect("a temporary folder");
    let mut again = Follower::open(fetched.path(), &genesis("test")).expect("opens");
    for block in solo.blocks(1, 100).expect("read") {
        again.commit(block).expect("taken");
    }
    assert_eq!((again.height(), again.tip()), (6, solo.tip()));
}

#[test]
fn the_wrong_thing_in_its_place_is_named_and_left_alone() {
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a str, &'a str);
    let put = |folder: &Path, name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).expect("written");
    let swap = |folder: &Path, name: &str| {
        fs::remove_file(folder.join(name)).expect("removed");
        fs::create_dir(folder.join(name)).expect("made");
    };
    let other = serde_json::to_string(&genesis("other")).expect("JSON");
    let no_store = "is damaged or is no Spillway store";
    // What is done to the folder, what a node says to it, what an auditor.
    let cases: [Case; 9] = [
        ("no store", &|f| put(f, LEDGER_FILE, &[7; 9_000]), no_store, no_store),
        ("an empty file", &|f| put(f, LEDGER_FILE, &[]), "the file is empty", "the file is empty"),
        ("a short file", &|f| put(f, LEDGER_FILE, b"redb"), no_store, no_store),
        (
            "no file",
            &|f| fs::remove_file(f.join(LEDGER_FILE)).expect("removed"),
            "had come to block 3",
            "has no ledger",
        ),
        ("a folder as ledger", &|f| swap(f, LEDGER_FILE), "is a directory", "has no ledger.redb"),
        ("a folder as genesis", &|f| swap(f, GENESIS_FILE), "is a directory", "is a directory"),
        ("a folder as note", &|f| swap(f, TIP_FILE), "is a directory", "is a directory"),
        ("another network", &|f| put(f, GENESIS_FILE, other.as_bytes()), "holds network", "parent is not the block"),
        ("no genesis", &|f| put(f, GENESIS_FILE, b"{}"), "missing field `name`", "missing field `name`"),
    ];
    for (what, change, want_node, want_auditor) in cases {
        let folder = written();
        change(folder.path());
        let before = files(folder.path());
        let contains = |words: &str, want: &str| words.to_lowercase().contains(&want.to_lowercase());
        let auditor = verify_folder(folder.path()).expect_err(what).to_string();
        assert!(contains(&auditor, want_auditor), "{what}: {auditor}");
        assert_eq!(files(folder.path()), before, "{what}: an auditor has changed a file");
        let node = solo(folder.path()).map(|_| ()).expect_err(what).to_string();
        assert!(contains(&node, want_node), "{what}: {node}");
        let ledger = folder.path().join(LEDGER_FILE);
        // The store itself may be opened, and so touched, before the fault beside it is found; what it says is the same.
        let kept = |path: &&PathBuf| **path != ledger;
        let after = files(folder.path());
        assert!(
            before.keys().filter(kept).all(|path| before[path] == after[path]),
            "{what}: a node has changed a file"
        );
    }

    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let node = solo(file.path()).map(|_| ()).expect_err("it is a file");
    assert!(matches!(&node, OpenError::Io { path, .. } if path == file.path()), "{node}");
    let auditor = verify_folder(file.path()).expect_err("it is a file").to_string();
    assert!(auditor.to_lowercase().contains("not a directory"), "{auditor}");
}

#[test]
fn a_store_that_a_kill_left_half_made_is_made_anew() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("node.redb");
    let half = folder.path().join("node.redb.new");
    // As redb has it before it writes the first words of a new file, and cut short, and whole but not yet in its place.
    let whole = {
        drop(Store::open(&path).expect("opens"));
        let bytes = fs::read(&path).expect("read");
        fs::remove_file(&path).expect("removed");
        bytes
    };
    for left in [vec![0; whole.len()], Vec::new(), whole[..4_096].to_vec(), whole.clone()] {
        fs::write(&half, &left).expect("written");
        let store = Store::open(&path).unwrap_or_else(|error| panic!("{} bytes left: {error}", left.len()));
        assert_eq!(store.last(Table::Meta).expect("read"), None);
        assert!(!half.exists() && path.exists());
        drop(store);
        fs::remove_file(&path).expect("removed");
    }
}

#[test]
fn of_many_that_make_a_store_at_once_one_gets_it() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("node.redb");
        let begin = std::sync::Barrier::new(4);
        let opened: Vec<Result<Store, StoreError>> = std::thread::scope(|scope| {
            let open = || {
                begin.wait();
                Store::open(&path)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let (have, not): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
        assert_eq!(have.len(), 1, "{not:?}");
        assert!(not.iter().all(|error| matches!(error, Err(StoreError::InUse(_)))), "{not:?}");
        // It is the one in its place that was got, not another that was moved over it.
        let store = have.into_iter().flatten().next().expect("one");
        let mut batch = Batch::new();
        batch.put(Table::Meta, [1], [1]);
        store.commit(batch).expect("written");
        drop(store);
        let store = Store::open(&path).expect("opens again");
        assert_eq!(store.get(Table::Meta, &[1]).expect("read"), Some(vec![1]));
    }
}
