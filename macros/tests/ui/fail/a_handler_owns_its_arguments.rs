#![allow(unused_variables)]

use anywire::{Ignore, Context, Result, event_pattern};

#[event_pattern("user.created")]
async fn welcome(name: &str) -> Result<()> {
    Ok(())
}

#[event_pattern("user.gone")]
async fn goodbye(_: Ignore, context: &Context) -> Result<()> {
    Ok(())
}

fn main() {}
