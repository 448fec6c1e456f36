//! What the emulation writes into a frame's header, and how it is read.

use std::fmt;
use std::time::Duration;

use smol_str::SmolStr;

/// The longest address that is believed, in bytes.
const MAX_ADDRESS: usize = 512;

/// Which of its two sides a stream's frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Caller,
    Server,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Caller => Self::Server,
            Self::Server => Self::Caller,
        }
    }
}

/// One side of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct End {
    pub(super) stream: u128,
    pub(super) side: Side,
}

/// The correlation id of a frame: the side that it is for, and the run that it belongs to. Whoever accepts a stream draws
/// the run's number: where two have accepted the same opening, each is in a run of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) end: End,
    pub(super) run: u64,
}

impl Mark {
    pub(super) fn other(self) -> Self {
        let End { stream, side } = self.end;
        Self {
            end: End {
                stream,
                side: side.other(),
            },
            run: self.run,
        }
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let (side, digits) = text.split_at_checked(1)?;
        let side = match side {
            "c" => Side::Caller,
            "s" => Side::Server,
            _ => return None,
        };
        let (stream, run) = digits.split_at_checked(32)?;
        let is_whole = run.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !is_whole {
            return None;
        }
        let stream = u128::from_str_radix(stream, 16).ok()?;
        Some(Self {
            end: End { stream, side },
            run: u64::from_str_radix(run, 16).ok()?,
        })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.end.side {
            Side::Caller => 'c',
            Side::Server => 's',
        };
        write!(f, "{side}{:032x}{:016x}", self.end.stream, self.run)
    }
}

/// How much the reader allows, from the stream's beginning on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credit {
    pub(super) items: u64,
    pub(super) bytes: u64,
}

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// The request that opens a stream.
    Open {
        stream: u128,
        /// Whether its sender sends items.
        sends: bool,
        credit: Credit,
        /// The time that the whole has left.
        left: Option<Duration>,
        /// How often its sender gives a sign of life.
        heartbeat: Duration,
        address: SmolStr,
    },
    /// The reply that accepts it.
    Accept {
        /// The number of the run that it begins.
        run: u64,
        credit: Credit,
        heartbeat: Duration,
        address: SmolStr,
    },
    /// An item and its number, from 1.
    Item(u64),
    /// The end, after so many items.
    End(u64),
    /// A sign of life, and all that there is to say: so many items were sent, and whether more can come; so many may be
    /// sent, and whether any is wanted.
    Beat {
        sent: u64,
        sends: bool,
        credit: Credit,
        reads: bool,
        address: SmolStr,
    },
    /// The stream is not known where the frame before this went.
    Gone,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open {
                stream,
                sends,
                credit,
                left,
                heartbeat,
                address,
            } => {
                let sends = u8::from(*sends);
                let Credit { items, bytes } = credit;
                write!(f, "open {stream:032x} {sends} {items} {bytes} ")?;
                match left {
                    Some(left) => write!(f, "{}", left.as_millis())?,
                    None => f.write_str("-")?,
                }
                write!(f, " {} {address}", heartbeat.as_millis())
            }
            Self::Accept {
                run,
                credit: Credit { items, bytes },
                heartbeat,
                address,
            } => {
                let millis = heartbeat.as_millis();
                write!(f, "accept {run:016x} {items} {bytes} {millis} {address}")
            }
            Self::Item(number) => write!(f, "i {number}"),
            Self::End(items) => write!(f, "e {items}"),
            Self::Beat {
                sent,
                sends,
                credit: Credit { items, bytes },
                reads,
                address,
            } => {
                let (sends, reads) = (u8::from(*sends), u8::from(*reads));
                write!(f, "b {sent} {sends} {items} {bytes} {reads} {address}")
            }
            Self::Gone => f.write_str("gone"),
        }
    }
}

impl Frame {
    /// Reads what a peer wrote; `None` where it is no frame of ours.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let frame = match words.next()? {
            "i" => Self::Item(number(&mut words)?),
            "e" => Self::End(number(&mut words)?),
            "b" => Self::Beat {
                sent: number(&mut words)?,
                sends: flag(&mut words)?,
                credit: credit(&mut words)?,
                reads: flag(&mut words)?,
                address: address(&mut words)?,
            },
            "gone" => Self::Gone,
            "accept" => Self::Accept {
                run: u64::from_str_radix(words.next()?, 16).ok()?,
                credit: credit(&mut words)?,
                heartbeat: millis(words.next()?)?,
                address: address(&mut words)?,
            },
            "open" => Self::Open {
                stream: u128::from_str_radix(words.next()?, 16).ok()?,
                sends: flag(&mut words)?,
                credit: credit(&mut words)?,
                left: match words.next()? {
                    "-" => None,
                    left => Some(millis(left)?),
                },
                heartbeat: millis(words.next()?)?,
                address: address(&mut words)?,
            },
            _ => return None,
        };
        words.next().is_none().then_some(frame)
    }
}

fn number<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<u64> {
    words.next()?.parse().ok()
}

fn millis(word: &str) -> Option<Duration> {
    word.parse().ok().map(Duration::from_millis)
}

fn flag<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<bool> {
    match words.next()? {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn credit<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Credit> {
    Some(Credit {
        items: number(words)?,
        bytes: number(words)?,
    })
}

fn address<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<SmolStr> {
    let text = words.next()?;
    (!text.is_empty() && text.len() <= MAX_ADDRESS).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let credit =
            (any::<u64>(), any::<u64>()).prop_map(|(items, bytes)| Credit { items, bytes });
        let address = "[!-~]{1,40}".prop_map(SmolStr::from);
        let left = proptest::option::of(any::<u32>());
        prop_oneof![
            (
                any::<u128>(),
                any::<bool>(),
                credit.clone(),
                left,
                any::<u64>(),
                address.clone()
            )
                .prop_map(|(stream, sends, credit, left, heartbeat, address)| {
                    Frame::Open {
                        stream,
                        sends,
                        credit,
                        left: left.map(|millis| Duration::from_millis(millis.into())),
                        heartbeat: Duration::from_millis(heartbeat),
                        address,
                    }
                }),
            (any::<u64>(), credit.clone(), any::<u64>(), address.clone()).prop_map(
                |(run, credit, heartbeat, address)| Frame::Accept {
                    run,
                    credit,
                    heartbeat: Duration::from_millis(heartbeat),
                    address,
                }
            ),
            any::<u64>().prop_map(Frame::Item),
            any::<u64>().prop_map(Frame::End),
            (any::<u64>(), any::<[bool; 2]>(), credit, address).prop_map(
                |(sent, [sends, reads], credit, address)| Frame::Beat {
                    sent,
                    sends,
                    credit,
                    reads,
                    address,
                }
            ),
            Just(Frame::Gone),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_survives_its_text(frame in frames()) {
            prop_assert_eq!(Frame::read(&frame.to_string()), Some(frame));
        }

        #[test]
        fn any_text_is_read(text in any::<String>()) {
            let _ = (Frame::read(&text), Mark::read(&text));
        }

        #[test]
        fn a_mark_survives_its_text(stream in any::<u128>(), run in any::<u64>(), caller in any::<bool>()) {
            let side = if caller { Side::Caller } else { Side::Server };
            let end = End { stream, side };
            let mark = Mark { end, run };
            prop_assert_eq!(Mark::read(&mark.to_string()), Some(mark));
        }
    }
}
