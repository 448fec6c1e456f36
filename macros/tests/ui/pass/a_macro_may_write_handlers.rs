#![deny(warnings)]

use anywire::{Ignore, Param, Result, Router, controller};

macro_rules! shop {
    ($name:ident, $pattern:literal, $limit:expr, $payload:ty, $param:ty) => {
        struct $name;

        #[controller]
        impl $name {
            #[event_pattern($pattern, concurrency = $limit)]
            async fn placed(&self, _: $payload, _: $param) -> Result<()> {
                Ok(())
            }
        }
    };
}

shop!(Shop, "shop.{region}.placed", 4, Ignore, Param<String>);

fn main() {
    let _ = Router::new().controller(Shop);
}
