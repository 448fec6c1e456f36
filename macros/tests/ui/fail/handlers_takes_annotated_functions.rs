#![allow(unused_variables)]

use anywire::{Ignore, Result, handlers};

async fn welcome(_: Ignore) -> Result<()> {
    Ok(())
}

fn main() {
    let _ = handlers![welcome];
}
