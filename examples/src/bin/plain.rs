//! The same without macros: a router, functions and closures. The attributes write nothing else than this.
//!
//! Run it with `cargo run -p anywire-examples --bin plain`.

use anywire::{App, Client, Param, Result, Router};

/// An event handler that emits another event.
async fn signed_up(name: String, Param(country): Param<String>, client: Client) -> Result<()> {
    client
        .emit("mail.send", &format!("Welcome to {country}, {name}"))
        .await?;
    Ok(())
}

/// A call handler: what it returns is the reply.
async fn length(text: String) -> Result<usize> {
    Ok(text.chars().count())
}

fn app() -> App {
    App::new("plain").router(
        Router::new()
            .on_event("user.{country}.created", signed_up)
            .on_event("mail.send", |mail: String| async move {
                println!("mail: {mail}");
                Ok::<_, anywire::Failure>(())
            })
            .on_call("text.length", length),
    )
}

#[tokio::main]
async fn main() -> Result<()> {
    let app = app().start().await?;
    let client = app.client();
    client.emit("user.fr.created", "Zoë").await?;
    let length: usize = client.request("text.length", "Zoë").await?;
    println!("length: {length}");
    // Handlers that run are let finish; what waits in a queue of memory is gone with the process.
    app.shutdown().await?;
    Ok(())
}
