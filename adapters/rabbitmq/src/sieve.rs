//! What the broker sends, made readable for the library.
//!
//! AMQP 0-9-1 says that a short string is UTF-8 and what a table may hold (4.2.5); RabbitMQ passes on what a publisher gave it. The
//! library ends the connection over a name that is not UTF-8 and over a table that it cannot read, and the message comes again
//! with the next connection: one foreign message would stop a whole app. So such bytes are overwritten, in place and before
//! the library sees them. Nothing changes its length.

/// The head of a frame: type, channel, size.
const HEAD: usize = 7;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// The largest frame that is looked into; the broker's `frame_max` is 128 KiB unless it is told otherwise.
const LARGEST: usize = 4 * 1024 * 1024;
/// How deep the tables and arrays of a message may lie in each other. The library goes down by recursion.
const DEEPEST: usize = 32;
const BASIC: u16 = 60;
/// What stands for a byte that is not text.
const UNREADABLE: u8 = b'?';

/// Looks into a stream of frames, however it is cut.
#[derive(Debug, Default)]
pub(crate) struct Sieve {
    /// How much of a frame that is not looked into is still to come.
    passing: usize,
    /// Not frames: the broker refuses our version of the protocol and names its own.
    is_off: bool,
}

impl Sieve {
    /// Mends what begins where the last call ended. Gives how much of it is ready; the rest is a frame that is not complete.
    pub(crate) fn mend(&mut self, bytes: &mut [u8]) -> Mended {
        let mut mended = Mended::default();
        if self.is_off {
            mended.ready = bytes.len();
            return mended;
        }
        loop {
            let Some(rest) = bytes.get_mut(mended.ready..) else {
                return mended;
            };
            if self.passing > 0 {
                let passed = self.passing.min(rest.len());
                self.passing -= passed;
                mended.ready += passed;
                if passed == 0 {
                    return mended;
                }
                continue;
            }
            let Some((kind, size)) = head(rest) else {
                return mended;
            };
            // The byte that ends a frame.
            let whole = HEAD + size + 1;
            match kind {
                METHOD | HEADER if size <= LARGEST => {
                    let Some(payload) = rest.get_mut(HEAD..whole) else {
                        return mended;
                    };
                    let payload = payload.split_last_mut().map(|(_, payload)| payload);
                    let mut fields = Fields::new(payload.unwrap_or_default());
                    let _ = match kind {
                        METHOD => fields.method(),
                        _ => fields.header(),
                    };
                    mended.changed |= fields.changed;
                    mended.ready += whole;
                }
                METHOD | HEADER | BODY | HEARTBEAT => self.passing = whole,
                _ => {
                    self.is_off = true;
                    mended.ready = bytes.len();
                    return mended;
                }
            }
        }
    }
}

/// What became of a stretch of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mended {
    /// So many bytes may go on.
    pub(crate) ready: usize,
    /// Whether something was overwritten.
    pub(crate) changed: bool,
}

fn head(bytes: &[u8]) -> Option<(u8, usize)> {
    let (kind, rest) = bytes.split_first()?;
    let size = rest.get(2..6)?.try_into().ok()?;
    Some((*kind, usize::try_from(u32::from_be_bytes(size)).ok()?))
}

/// The fields of a frame, one after the other. `None` where one is cut short: the library will say so.
struct Fields<'a> {
    rest: &'a mut [u8],
    changed: bool,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self {
            rest: bytes,
            changed: false,
        }
    }

    /// The methods that bring what others named: `basic.deliver`, `basic.return`, `basic.get-ok`.
    fn method(&mut self) -> Option<()> {
        if self.number()? != BASIC {
            return Some(());
        }
        match self.number()? {
            50 => {
                self.take(2)?;
                self.names(3)
            }
            60 => {
                self.names(1)?;
                self.take(9)?;
                self.names(2)
            }
            71 => {
                self.take(9)?;
                self.names(2)
            }
            _ => Some(()),
        }
    }

    /// The properties of a message.
    fn header(&mut self) -> Option<()> {
        if self.number()? != BASIC {
            return Some(());
        }
        // Weight and size of the body.
        self.take(10)?;
        let flags = self.number()?;
        for bit in (2..16).rev() {
            if flags & (1 << bit) == 0 {
                continue;
            }
            match bit {
                13 => self.table()?,
                11 | 12 => drop(self.take(1)?),
                6 => drop(self.take(8)?),
                _ => self.name()?,
            }
        }
        Some(())
    }

    fn take(&mut self, count: usize) -> Option<&'a mut [u8]> {
        let (taken, rest) = std::mem::take(&mut self.rest).split_at_mut_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes((&*bytes).try_into().ok()?))
    }

    fn long(&mut self) -> Option<&'a mut [u8]> {
        let size = self.take(4)?;
        let size = u32::from_be_bytes((&*size).try_into().ok()?);
        self.take(usize::try_from(size).ok()?)
    }

    fn names(&mut self, count: usize) -> Option<()> {
        (0..count).try_for_each(|_| self.name())
    }

    fn name(&mut self) -> Option<()> {
        let size = usize::from(self.byte()?);
        let name = self.take(size)?;
        self.changed |= make_text(name);
        Some(())
    }

    /// A table that cannot be read becomes one of a single entry, which holds its bytes.
    fn table(&mut self) -> Option<()> {
        let table = self.long()?;
        let mut entries = Fields::new(&mut *table);
        let is_read = entries.entries(DEEPEST);
        self.changed |= entries.changed;
        if is_read.is_none() {
            self.changed = true;
            wrap(table);
        }
        Some(())
    }

    fn entries(&mut self, depth: usize) -> Option<()> {
        while !self.rest.is_empty() {
            self.name()?;
            self.value(depth)?;
        }
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        match self.byte()? {
            b't' | b'b' | b'B' => drop(self.take(1)?),
            b's' | b'U' | b'u' => drop(self.take(2)?),
            b'I' | b'i' | b'f' => drop(self.take(4)?),
            b'L' | b'l' | b'd' | b'T' => drop(self.take(8)?),
            b'D' => drop(self.take(5)?),
            b'S' | b'x' => drop(self.long()?),
            b'V' => {}
            b'F' => self.inner(|inner| inner.entries(depth.checked_sub(1)?))?,
            b'A' => self.inner(|inner| {
                while !inner.rest.is_empty() {
                    inner.value(depth.checked_sub(1)?)?;
                }
                Some(())
            })?,
            _ => return None,
        }
        Some(())
    }

    fn inner(&mut self, read: impl FnOnce(&mut Fields<'_>) -> Option<()>) -> Option<()> {
        let mut inner = Fields::new(self.long()?);
        let is_read = read(&mut inner);
        self.changed |= inner.changed;
        is_read
    }
}

/// Overwrites what is not UTF-8; whether there was something.
fn make_text(bytes: &mut [u8]) -> bool {
    let (mut at, mut changed) = (0, false);
    while let Some(rest) = bytes.get_mut(at..)
        && let Err(error) = std::str::from_utf8(rest)
    {
        let from = error.valid_up_to();
        let to = error.error_len().map_or(rest.len(), |count| from + count);
        if let Some(bad) = rest.get_mut(from..to) {
            bad.fill(UNREADABLE);
        }
        at += to;
        changed = true;
    }
    changed
}

/// A table of one entry, `?`, a byte array of what fits of the old one; of as many entries without a value where it is too short.
fn wrap(table: &mut [u8]) {
    const OVERHEAD: usize = 7;
    if let Some(size) = table.len().checked_sub(OVERHEAD)
        && let Ok(size) = u32::try_from(size)
        && let Some((head, _)) = table.split_at_mut_checked(OVERHEAD)
    {
        let [a, b, c, d] = size.to_be_bytes();
        head.copy_from_slice(&[1, UNREADABLE, b'x', a, b, c, d]);
        return;
    }
    let odd = table.len() % 2 == 1 && table.len() > 1;
    let (first, pairs) = table.split_at_mut(if odd { 3 } else { 0 });
    if odd {
        first.copy_from_slice(&[1, UNREADABLE, b'V']);
    }
    for pair in pairs.chunks_exact_mut(2) {
        pair.copy_from_slice(&[0, b'V']);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use lapin::types::parsing::parse_field_table;
    use proptest::prelude::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1], &size[..], payload, &[0xce]].concat()
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    fn deliver(key: &[u8]) -> Vec<u8> {
        let ids = [[0, 60, 0, 60].as_slice(), &short(b"tag"), &[0; 9]].concat();
        frame(METHOD, &[ids, short(b"anywire"), short(key)].concat())
    }

    fn headers(table: &[u8]) -> Vec<u8> {
        let size = u32::try_from(table.len()).unwrap().to_be_bytes();
        let head = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0b0010_0000, 0];
        frame(HEADER, &[&head, &size[..], table].concat())
    }

    /// Runs a stream through the sieve as it comes, in pieces of these sizes.
    fn sieved(stream: &[u8], pieces: &[usize]) -> (Vec<u8>, bool) {
        let (mut sieve, mut out, mut waiting) = (Sieve::default(), Vec::new(), Vec::new());
        let (mut stream, mut changed) = (stream, false);
        let mut pieces = pieces.iter().copied().cycle();
        while !stream.is_empty() {
            let piece = pieces.next().unwrap().clamp(1, stream.len());
            let (now, later) = stream.split_at(piece);
            stream = later;
            waiting.extend_from_slice(now);
            let mended = sieve.mend(&mut waiting);
            changed |= mended.changed;
            out.extend(waiting.drain(..mended.ready));
        }
        assert!(waiting.is_empty(), "something is held back");
        (out, changed)
    }

    #[test]
    fn a_key_that_is_not_text_is_overwritten() {
        let (out, changed) = sieved(&deliver(b"shop.\xff\xc3.placed"), &[1]);
        assert_eq!(out, deliver(b"shop.??.placed"));
        assert!(changed);
        let legal = deliver("shop.é.placed".as_bytes());
        assert_eq!(sieved(&legal, &[3]), (legal, false));
    }

    #[test]
    fn names_in_a_table_are_mended_however_deep() {
        let entry = |name: &[u8], value: &[u8]| [&short(name), value].concat();
        let inner = entry(b"in\xffner", &[b't', 1]);
        let size = u32::try_from(inner.len()).unwrap().to_be_bytes();
        let nested = [&[b'F'][..], &size, &inner].concat();
        let text = [&[b'S', 0, 0, 0, 2][..], b"\xff\xfe"].concat();
        let table = [entry(b"a", &nested), entry(b"\xc3", &text)].concat();
        let (out, changed) = sieved(&headers(&table), &[7]);
        assert!(changed);
        let mended = String::from_utf8_lossy(&out).into_owned();
        assert!(mended.contains("in?ner"), "{mended:?}");
        assert!(
            out.windows(2).any(|pair| pair == b"\xff\xfe"),
            "a value is bytes"
        );
    }

    #[test]
    fn a_table_that_cannot_be_read_is_one_that_can() {
        let mut deep = Vec::new();
        for _ in 0..5_000 {
            let size = u32::try_from(deep.len() + 2).unwrap().to_be_bytes();
            deep = [&[1, b'a', b'F'][..], &size, &[0, b'V'], &deep].concat();
        }
        let unknown = [1, b'a', b'Q', 1, 2, 3, 4, 5, 6];
        let cut = [1, b'a', b'S', 0, 0, 9, 9];
        for table in [&deep[..], &unknown, &cut, &[200, 1], &[9, 9, 9], &[7; 6]] {
            let (out, changed) = sieved(&headers(table), &[64]);
            assert!(changed, "{table:?}");
            let table = out.get(HEAD + 14..out.len() - 1).unwrap();
            let (rest, _) = parse_field_table(table).unwrap();
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn a_broker_of_another_version_is_heard() {
        let (out, changed) = sieved(b"AMQP\x00\x01\x00\x00", &[3]);
        assert_eq!(out, b"AMQP\x00\x01\x00\x00");
        assert!(!changed);
    }

    proptest! {
        /// Whatever comes goes on, in its length and its frames, and what is legal as it is.
        #[test]
        fn nothing_is_held_back(
            keys in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0..70_000_usize), 0..5),
            pieces in prop::collection::vec(1..5_000_usize, 1..5),
        ) {
            let (mut stream, mut wanted) = (Vec::new(), Vec::new());
            for (key, size) in &keys {
                let body = frame(BODY, &vec![0xff; *size]);
                stream.extend([deliver(key), headers(&[]), body.clone()].concat());
                let mut key = key.clone();
                make_text(&mut key);
                prop_assert!(std::str::from_utf8(&key).is_ok());
                wanted.extend([deliver(&key), headers(&[]), body].concat());
            }
            prop_assert_eq!(sieved(&stream, &pieces).0, wanted);
        }

        /// A table of any bytes can be read afterwards, unless it is a single byte.
        #[test]
        fn any_table_can_be_read(table in prop::collection::vec(any::<u8>(), 2..60)) {
            let (out, _) = sieved(&headers(&table), &[1_000]);
            let table = out.get(HEAD + 14..out.len() - 1).unwrap();
            prop_assert!(parse_field_table(table).is_ok());
        }
    }
}
