//! Random numbers for identity and for spreading in time; nothing here is secret.

use std::cell::RefCell;

use rand::RngExt;
use rand::rngs::SmallRng;

thread_local!(static NUMBERS: RefCell<SmallRng> = RefCell::new(rand::make_rng()));

/// 128 bits, from a fast generator that the operating system seeded once for each thread.
pub(crate) fn bits() -> u128 {
    NUMBERS.with_borrow_mut(RngExt::random)
}

/// 64 bits of them.
pub(crate) fn number() -> u64 {
    NUMBERS.with_borrow_mut(RngExt::random)
}

/// From 0 to 1, without the 1.
pub(crate) fn fraction() -> f64 {
    NUMBERS.with_borrow_mut(RngExt::random)
}
