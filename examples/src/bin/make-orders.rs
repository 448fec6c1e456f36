//! Writes the sample, `examples/data/orders.jsonl`: 10,000 lines as customers send them, the same in every run.
//!
//! ```text
//! cargo run -p anywire-examples --bin make-orders > examples/data/orders.jsonl
//! ```

use std::io::{self, BufWriter, Write};

const LINES: u64 = 10_000;
const ITEMS: [&str; 10] = [
    "bell", "candle", "chair", "clock", "kettle", "lamp", "mug", "rug", "spoon", "teapot",
];
const REGIONS: [&str; 6] = ["eu", "eu", "us", "us-west", "ap", "eu.north"];
/// Names as they are: none of them may confuse a subject, a key or a terminal.
const NAMES: [&str; 10] = [
    "Zoë Ωmega",
    "李雷",
    "O'Brien; DROP TABLE orders",
    "🦀 Ferris",
    "مريم",
    "vip.*.>",
    "{region}",
    "a\\tb",
    "J\u{0301}on",
    "Null",
];

fn main() -> io::Result<()> {
    let mut output = BufWriter::new(io::stdout().lock());
    let mut dice = Dice(0x5eed_0f0d_e7ec_7ab1);
    for number in 1..=LINES {
        let line = line(number, &mut dice);
        output.write_all(&line)?;
        output.write_all(b"\n")?;
    }
    output.flush()
}

/// Nine lines in ten are in order; the others have one defect.
fn line(number: u64, dice: &mut Dice) -> Vec<u8> {
    let id = format!("o-{number:05}");
    let item = *dice.pick(&ITEMS);
    let quantity = 1 + dice.roll(6).to_string().parse::<i64>().unwrap_or_default();
    let region = *dice.pick(&REGIONS);
    let customer = match dice.roll(20) {
        0 => (*dice.pick(&NAMES)).to_owned(),
        _ => format!("c-{:03}", dice.roll(800)),
    };
    let order = |id: &str, item: &str, quantity: &str| {
        format!(
            r#"{{"id":"{id}","customer":"{customer}","region":"{region}","item":{item},"quantity":{quantity}}}"#
        )
    };
    let text = |item: &str| format!("\"{item}\"");
    let good = order(&id, &text(item), &quantity.to_string());
    if number == 2_500 {
        // Long, but an order: fields that nobody knows are ignored.
        let note = format!(r#","note":"{}"}}"#, "please ".repeat(4_000));
        return (good.trim_end_matches('}').to_owned() + &note).into_bytes();
    }
    if number == 7_500 {
        return "please ".repeat(20_000).into_bytes();
    }
    let defective = match dice.roll(160) {
        0 => good[..good.len() * 2 / 3].to_owned(),
        1 => good[..good.len() - 1].to_owned(),
        2 => order(&id, &text(item), "\"two\""),
        3 => order(&id, &text(item), "1.5"),
        4 => order(&id, "null", &quantity.to_string()),
        5 => good.replace("\"customer\"", "\"client\""),
        6 => good.replacen(&format!("\"id\":\"{id}\","), "", 1),
        7 => format!("{id},{customer},{region},{item},{quantity}"),
        8 => order(&id, &text("unicorn"), &quantity.to_string()),
        9 => order(&id, &text(&item.to_uppercase()), &quantity.to_string()),
        10 => order(&id, &text(item), &format!("-{quantity}")),
        11 => order(&id, &text(item), "0"),
        12 => order(&id, &text(item), "9223372036854775807"),
        13 => order(&id, &text(item), "600"),
        14 => {
            let before = 1 + dice.roll(number);
            order(&format!("o-{before:05}"), &text(item), "1")
        }
        15 => String::new(),
        16 => return [good.as_bytes(), b"\xff\xfe"].concat(),
        17 => good.clone() + "\r",
        _ => good.clone(),
    };
    defective.into_bytes()
}

/// A generator of numbers that look random (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let sides = of.len() as u64;
        &of[usize::try_from(self.roll(sides)).unwrap_or_default()]
    }
}
