//! Relaying proxies between validators, which can be cut: a partition without the rights of an administrator.
//! Invariant: while a pair is cut, no byte passes between the two, in neither direction.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// One direction of dialling, from one validator to another.
struct Link {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

/// All of them.
pub struct Links(BTreeMap<(usize, usize), Link>);

impl Links {
    /// Proxies for every pair of these listeners, open.
    pub fn new(listen: &[SocketAddr]) -> Links {
        let count = listen.len();
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to))).filter(|(from, to)| from != to);
        Links(pairs.map(|(from, to)| ((from, to), Link::new(listen[to]))).collect())
    }

    /// Where `from` dials to reach `to`.
    pub fn way(&self, from: usize, to: usize) -> SocketAddr {
        self.0[&(from, to)].address
    }

    /// Cuts or mends every pair between the two groups.
    pub fn cut(&self, one: &[usize], other: &[usize], cut: bool) {
        for (from, to) in one.iter().flat_map(|from| other.iter().map(move |to| (*from, *to))) {
            self.0[&(from, to)].set(cut);
            self.0[&(to, from)].set(cut);
        }
    }
}

impl Link {
    fn new(to: SocketAddr) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("it is bound");
        let (cut, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let link = Link { address, cut: cut.clone(), open: open.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // One that is refused is closed at once; the dialler tries again later.
                if cut.load(Ordering::SeqCst) {
                    continue;
                }
                if let Ok(onward) = TcpStream::connect(to) {
                    relay(&stream, &onward, &cut, &open);
                }
            }
        });
        link
    }

    fn set(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
        if cut {
            for stream in self.open.lock().expect("nobody panics with it").drain(..) {
                let _closed_already = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn relay(one: &TcpStream, other: &TcpStream, cut: &Arc<AtomicBool>, open: &Mutex<Vec<TcpStream>>) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor is left");
    open.lock().expect("nobody panics with it").extend([clone(one), clone(other)]);
    for (from, to) in [(clone(one), clone(other)), (clone(other), clone(one))] {
        let cut = cut.clone();
        thread::spawn(move || pass(from, to, &cut));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if cut.load(Ordering::SeqCst) || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _closed_already = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
