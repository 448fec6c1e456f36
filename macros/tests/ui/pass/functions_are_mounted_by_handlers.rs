#![deny(warnings)]

use anywire::{Ignore, Result, event_pattern, handlers};

#[event_pattern("user.created", group = "mail")]
async fn welcome(name: String) -> Result<()> {
    println!("welcome, {name}");
    Ok(())
}

mod users {
    pub mod inner {
        use anywire::{Ignore, Result};

        /// Counts.
        #[anywire::message_pattern("user.count")]
        pub async fn count(_: Ignore) -> Result<u32> {
            Ok(1)
        }

        #[anywire::event_pattern("user.left")]
        #[cfg(any())]
        pub(super) async fn left_out(_: NotThere) {}
    }

    #[anywire::event_pattern("user.gone")]
    pub(crate) async fn gone(_: u32) {}
}

use users::inner::count;

#[event_pattern("user.renamed")]
async fn r#type(_: Ignore) {}

fn main() {
    #[event_pattern("user.local")]
    async fn local(_: Ignore) {}

    let router = handlers![welcome, count, users::gone, r#type, local];
    let shown = format!("{router:?}");
    for name in ["welcome", "count", "gone", "type", "local"] {
        assert!(shown.contains(&format!("name: \"{name}\"")), "{name}: {shown}");
    }
    let _ = handlers![];
    // They stay functions.
    drop(welcome("Ada".to_owned()));
    drop(count(Ignore));
}
