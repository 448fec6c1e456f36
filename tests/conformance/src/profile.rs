//! How hard the suite pushes.

use std::time::Duration;

/// How many messages, subscribers and seconds a behaviour uses. Chosen by `ANYWIRE_PROFILE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Every commit.
    #[default]
    Smoke,
    /// Before a merge.
    Full,
    /// At night; the suite runs ten times side by side.
    Stress,
    /// At night, with faults.
    Chaos,
}

impl Profile {
    /// Reads `ANYWIRE_PROFILE`: `smoke` (the default), `full`, `stress` or `chaos`.
    ///
    /// # Errors
    /// A sentence, for a profile that does not exist.
    pub fn from_env() -> Result<Self, String> {
        match std::env::var("ANYWIRE_PROFILE").as_deref() {
            Err(_) | Ok("" | "smoke") => Ok(Self::Smoke),
            Ok("full") => Ok(Self::Full),
            Ok("stress") => Ok(Self::Stress),
            Ok("chaos") => Ok(Self::Chaos),
            Ok(other) => Err(format!(
                "ANYWIRE_PROFILE={other} is not a profile; there are smoke, full, stress and chaos"
            )),
        }
    }

    /// One of three values; chaos takes the last.
    #[must_use]
    pub fn pick<T>(self, smoke: T, full: T, stress: T) -> T {
        match self {
            Self::Smoke => smoke,
            Self::Full => full,
            Self::Stress | Self::Chaos => stress,
        }
    }

    /// The basic number of messages.
    #[must_use]
    pub fn messages(self) -> usize {
        self.pick(100, 1_000, 10_000)
    }

    /// How many subscribers run at once.
    #[must_use]
    pub fn subscribers(self) -> usize {
        match self {
            Self::Smoke => 4,
            Self::Full | Self::Stress => 50,
            Self::Chaos => 10,
        }
    }

    /// How many publishers run at once.
    #[must_use]
    pub fn publishers(self) -> usize {
        self.pick(8, 50, 100)
    }

    /// How often the suite runs, side by side.
    #[must_use]
    pub fn repeats(self) -> usize {
        match self {
            Self::Stress => 10,
            Self::Smoke | Self::Full | Self::Chaos => 1,
        }
    }

    /// When a test must be over, counted from its start.
    #[must_use]
    pub fn deadline(self) -> Duration {
        Duration::from_secs(match self {
            Self::Smoke => 15,
            Self::Full => 45,
            Self::Stress => 225,
            Self::Chaos => 300,
        })
    }

    /// How long an expected message may keep a receiver waiting.
    #[must_use]
    pub fn idle_gap(self) -> Duration {
        Duration::from_secs(self.pick(5, 10, 30))
    }
}
