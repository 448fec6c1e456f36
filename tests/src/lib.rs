//! The README and the guide, compiled and run as doc tests. They lie outside of the published packages, so it is done here.

#[doc = include_str!("../../README.md")]
pub mod readme {}

#[doc = include_str!("../../docs/getting-started.md")]
pub mod getting_started {}

#[doc = include_str!("../../docs/handlers-and-extractors.md")]
pub mod handlers_and_extractors {}

#[doc = include_str!("../../docs/patterns-and-subjects.md")]
pub mod patterns_and_subjects {}

#[doc = include_str!("../../docs/failures-retries-and-dead-letters.md")]
pub mod failures_retries_and_dead_letters {}

#[doc = include_str!("../../docs/choosing-a-pattern.md")]
pub mod choosing_a_pattern {}

#[doc = include_str!("../../docs/streaming.md")]
pub mod streaming {}

#[doc = include_str!("../../docs/configuration.md")]
pub mod configuration {}

#[doc = include_str!("../../docs/hybrid-apps.md")]
pub mod hybrid_apps {}

#[doc = include_str!("../../docs/replay.md")]
pub mod replay {}

#[doc = include_str!("../../docs/testing.md")]
pub mod testing {}

#[doc = include_str!("../../docs/beside-axum.md")]
pub mod beside_axum {}

#[doc = include_str!("../../docs/running-on-nats.md")]
pub mod running_on_nats {}

#[doc = include_str!("../../docs/running-on-rabbitmq.md")]
pub mod running_on_rabbitmq {}

#[doc = include_str!("../../docs/running-on-kafka.md")]
pub mod running_on_kafka {}

#[doc = include_str!("../../docs/running-on-grpc.md")]
pub mod running_on_grpc {}

#[doc = include_str!("../../docs/wire.md")]
pub mod wire {}

#[doc = include_str!("../../docs/writing-an-adapter.md")]
pub mod writing_an_adapter {}

#[doc = include_str!("../../docs/coming-from-nestjs.md")]
pub mod coming_from_nestjs {}
