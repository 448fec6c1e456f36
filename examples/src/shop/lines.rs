//! Reads the input, line by line, without ever holding much of it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor};
use std::thread;

use anywire::Bytes;
use tokio::sync::mpsc;

/// The longest line that may be an order. What is longer is not even kept.
pub const MAX_LINE: usize = 64 * 1024;
/// How many lines are read ahead.
const AHEAD: usize = 1024;
/// The orders that ship with the example.
const SAMPLE: &[u8] = include_bytes!("../../data/orders.jsonl");

/// A line of the input, without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Its bytes, which need not be text.
    Text(Bytes),
    /// It was longer than [`MAX_LINE`].
    TooLong,
}

/// The lines of an input as they are read. An error ends them.
pub type Lines = mpsc::Receiver<io::Result<Line>>;

/// The orders that ship with the example.
#[must_use]
pub fn sample() -> Lines {
    read(Cursor::new(SAMPLE))
}

/// The lines of the file at `path`; of standard input where that is `-`.
///
/// # Errors
/// Where the file cannot be opened.
pub fn open(path: &str) -> io::Result<Lines> {
    if path == "-" {
        return Ok(read(BufReader::new(io::stdin())));
    }
    Ok(read(BufReader::new(File::open(path)?)))
}

/// The lines of `input`.
///
/// They are read in a thread of its own: a terminal or a pipe may block for ever, and a thread does not keep the program
/// from ending.
pub fn read(mut input: impl BufRead + Send + 'static) -> Lines {
    let (sender, lines) = mpsc::channel(AHEAD);
    thread::spawn(move || {
        while let Some(line) = next_line(&mut input).transpose() {
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                break;
            }
        }
    });
    lines
}

fn next_line(input: &mut impl BufRead) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    let mut length = 0;
    loop {
        let chunk = input.fill_buf()?;
        if chunk.is_empty() && length == 0 {
            return Ok(None);
        }
        let end = chunk.iter().position(|&byte| byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        let room = (MAX_LINE + 1).saturating_sub(line.len());
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = part.len() + usize::from(end.is_some());
        let over = end.is_some() || chunk.is_empty();
        input.consume(used);
        length += used;
        if over {
            break;
        }
    }
    if line.len() > MAX_LINE {
        return Ok(Some(Line::TooLong));
    }
    Ok(Some(Line::Text(line.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(mut input: &[u8]) -> Vec<Line> {
        std::iter::from_fn(|| next_line(&mut input).unwrap()).collect()
    }

    fn text(text: &'static str) -> Line {
        Line::Text(text.into())
    }

    #[test]
    fn the_last_line_needs_no_end_and_an_empty_one_is_a_line() {
        assert_eq!(lines_of(b""), []);
        assert_eq!(lines_of(b"a\n\nb"), [text("a"), text(""), text("b")]);
        assert_eq!(lines_of(b"a\n"), [text("a")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_one_is_read() {
        let mut input = vec![b'x'; MAX_LINE];
        input.push(b'\n');
        input.extend(vec![b'y'; 3 * MAX_LINE]);
        input.extend(b"\nnext\n");
        let lines: Vec<Line> = {
            let mut input = BufReader::with_capacity(1000, input.as_slice());
            std::iter::from_fn(|| next_line(&mut input).unwrap()).collect()
        };
        assert_eq!(
            lines,
            [
                Line::Text(vec![b'x'; MAX_LINE].into()),
                Line::TooLong,
                text("next")
            ]
        );
    }
}
