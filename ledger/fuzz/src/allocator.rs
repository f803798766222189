//! An allocator that counts, so that no input makes a decoder ask for more memory than its limit.
//! Invariant: [`watched`] sees every byte that its body had at once, and a larger peak than any before is printed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes allocated now.
static NOW: AtomicUsize = AtomicUsize::new(0);
/// The most there were since [`watched`] began.
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The most that any input of this run took.
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn grow(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may both be there while the bytes are moved.
        grow(size);
        let moved = unsafe { System.realloc(pointer, layout, size) };
        NOW.fetch_sub(layout.size(), Relaxed);
        moved
    }
}

/// Runs `body`, and panics if it had more than `max` bytes at once beyond what there was before.
pub fn watched<T>(what: &str, max: usize, body: impl FnOnce() -> T) -> T {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let value = body();
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    assert!(peak <= max, "{what} had {peak} bytes at once, where {max} are its limit");
    if HIGHEST.fetch_max(peak, Relaxed) < peak {
        eprintln!("peak {peak} of {max} {what}");
    }
    value
}
