//! An allocator that counts, so that a table can say how many allocations a message costs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// One counter a thread, each on a cache line of its own: what counts must not slow down what it counts.
static SHARDS: [Shard; 64] = [const { Shard(AtomicU64::new(0)) }; 64];
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

#[repr(align(128))]
struct Shard(AtomicU64);

/// The system's allocator, counting.
#[derive(Debug)]
pub struct Counting;

// The one place in the workspace that cannot do without: an allocator is unsafe by its trait. It only counts and forwards.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Only its own thread writes to a shard, so that a load and a store do; with more than 64 threads at once some share
/// one, and a count may be lost.
fn count() {
    let shard = SHARD.with(|shard| {
        if shard.get() == usize::MAX {
            shard.set(THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS.len());
        }
        &SHARDS[shard.get()].0
    });
    shard.store(shard.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// How many allocations there have been since the program began.
#[must_use]
pub fn allocated() -> u64 {
    let counts = SHARDS.iter().map(|shard| shard.0.load(Ordering::Relaxed));
    counts.sum()
}
