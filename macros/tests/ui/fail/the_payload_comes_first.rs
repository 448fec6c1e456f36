#![allow(unused_variables)]

use anywire::{Client, Context, Param, Result, State, controller, event_pattern};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.{region}.placed")]
    async fn placed(&self, Param(region): Param<String>, order: u32) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.{region}.moved")]
    async fn moved(&self, Param(region): Param<String>) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.paid")]
    async fn paid(&self, client: anywire::Client) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.sent")]
    async fn sent(&self, context: Context, client: Client) -> Result<()> {
        Ok(())
    }
}

#[event_pattern("shop.placed")]
async fn audit(State(log): State<u32>) -> Result<()> {
    Ok(())
}

fn main() {}
