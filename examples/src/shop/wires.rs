//! The wires that the programs may use. Which one they do use is a line of configuration: `ANYWIRE_URL=nats://127.0.0.1`.

use anywire::App;

/// Registers an adapter for each wire that was built in, by a feature of its name. Memory is always there.
pub fn on_all_wires(app: App) -> App {
    #[cfg(feature = "nats")]
    let app = app.adapter(anywire_nats::adapter());
    #[cfg(feature = "rabbitmq")]
    let app = app.adapter(anywire_rabbitmq::adapter());
    #[cfg(feature = "grpc")]
    let app = app.adapter(anywire_grpc::adapter());
    #[cfg(feature = "kafka")]
    let app = app.adapter(anywire_kafka::adapter());
    app
}
