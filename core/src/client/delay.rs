//! The time of an event that is published for later.

use std::time::{Duration, Instant, SystemTime};

use super::{ClientCore, SubjectRoute, Wire};
use crate::engine::LONGEST;
use crate::{Error, ErrorKind, Guarantee};

/// When an event is to be delivered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Delay {
    After(Duration),
    At(SystemTime),
}

impl Delay {
    /// The instant before which the event must not be delivered; `None` for at once.
    ///
    /// # Errors
    /// `Unsupported` where nobody would keep the event until then, `Config` where it would not be kept for so long.
    pub(super) fn due(
        delay: Option<Self>,
        core: &ClientCore,
        wire: &Wire,
        route: &SubjectRoute,
        guarantee: Guarantee,
    ) -> Result<Option<Instant>, Error> {
        let Some(delay) = delay else {
            return Ok(None);
        };
        let refused = |why: &str| {
            let error = Error::new(ErrorKind::Unsupported, why);
            Err(error.with_context("transport", &wire.name))
        };
        // Also for a time that has passed: whether an emit is legal must not hang on the moment.
        if !wire.capabilities.delay.is_supported() {
            return refused(
                "the transport has no delay; route the subject to one that has, or emit the event when its time has come",
            );
        }
        if guarantee == Guarantee::AtMostOnce {
            return refused(
                "an event that may be lost is not kept for later; emit it at least once, or when its time has come",
            );
        }
        let wait = match delay {
            Self::After(wait) => wait,
            Self::At(time) => time.duration_since(core.clock.wall()).unwrap_or_default(),
        };
        if wait > LONGEST {
            return Err(Error::config(
                "an event waits at most 134217728 s (four years); emit it later",
            ));
        }
        if wait >= route.retention {
            let kept = humantime::format_duration(route.retention);
            return Err(Error::config(format!(
                "the event would wait for {}, and the subject keeps messages for {kept}; raise its `retention`",
                humantime::format_duration(wait)
            )));
        }
        Ok((!wait.is_zero()).then(|| core.clock.now() + wait))
    }
}
