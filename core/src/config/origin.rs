//! Where a setting came from, and how strong its layer is.

use std::fmt;

use smol_str::SmolStr;

/// The place that said a value. It is displayed as people look for it: `anywire.toml:12`, `ANYWIRE_URL`, `code`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nobody said it: the framework's own default.
    Default,
    /// An attribute or a builder call.
    Code,
    /// A [`Config`](super::Config) that was deserialized as a part of the user's own settings.
    Settings,
    /// A line of a file.
    File {
        /// The file, as it was named.
        name: SmolStr,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(SmolStr),
    /// A layer that the program forces over all others.
    Force,
}

impl Origin {
    const fn strength(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Code => 1,
            Self::Settings | Self::File { .. } => 2,
            Self::Variable(_) => 3,
            Self::Force => 4,
        }
    }

    /// Whether this is configuration from outside the program, which may not weaken what the code promises.
    pub(super) const fn is_operations(&self) -> bool {
        matches!(self, Self::Settings | Self::File { .. } | Self::Variable(_))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Code => f.write_str("code"),
            Self::Settings => f.write_str("settings"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Force => f.write_str("force"),
        }
    }
}

/// How strong a layer is: by its kind, and among layers of one kind the later is the stronger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    strength: u8,
    turn: u32,
}

impl Rank {
    pub(super) const fn new(origin: &Origin, turn: u32) -> Self {
        Self {
            strength: origin.strength(),
            turn,
        }
    }
}

/// A value with the place that said it.
#[derive(Clone)]
pub(super) struct Said<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
    pub(super) rank: Rank,
}

impl<T> Said<T> {
    /// A value from an attribute or a builder.
    pub(super) fn in_code(value: T) -> Self {
        Self {
            value,
            origin: Origin::Code,
            rank: Rank::new(&Origin::Code, 0),
        }
    }

    /// Whether a layer of a stronger kind said this, however late the layers came.
    pub(super) const fn is_of_stronger_kind(&self, other: Rank) -> bool {
        self.rank.strength > other.strength
    }
}

/// Puts `high` over `low` where it says something and its layer is at least as strong.
pub(super) fn merge<T: Clone>(low: &mut Option<Said<T>>, high: &Option<Said<T>>) {
    if let Some(said) = high
        && low.as_ref().is_none_or(|low| said.rank >= low.rank)
    {
        *low = Some(said.clone());
    }
}
