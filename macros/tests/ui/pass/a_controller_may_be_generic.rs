#![deny(warnings)]

use anywire::{Result, Router, controller};
use serde::Deserialize;
use serde::de::DeserializeOwned;

trait Db: Send + Sync + 'static {
    type Row: DeserializeOwned + Send + 'static;

    fn put(&self, row: Self::Row) -> impl Future<Output = u32> + Send;
}

struct Shop<T, const N: usize>(T);

#[controller]
impl<T: Db, const N: usize> Shop<T, N>
where
    T: Clone,
{
    #[event_pattern("shop.placed")]
    async fn placed(&self, row: T::Row) -> Result<()> {
        self.0.put(row).await;
        Ok(())
    }

    #[message_pattern("shop.count")]
    async fn count(&self, row: T::Row) -> Result<u32> {
        Ok(self.0.clone().put(row).await)
    }
}

#[derive(Deserialize)]
struct Row;

#[derive(Clone)]
struct Table;

impl Db for Table {
    type Row = Row;

    async fn put(&self, _: Row) -> u32 {
        1
    }
}

fn main() {
    let _ = Router::new().controller(Shop::<_, 3>(Table));
}
