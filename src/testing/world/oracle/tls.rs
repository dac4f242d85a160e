//! Mail goes over sessions that were opened for the TLS its queue wishes, and verified for its own host.

use super::super::observation::{Observation, Seen};
use super::{Facts, Invariant, Judgement};

pub(super) struct Tls;

impl Invariant for Tls {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let Seen::Offered { connection, queue, host, .. } = &observation.seen else { return Ok(()) };
        let Some(open) = facts.open.get(connection) else { return Ok(()) };
        let wish = facts.settings(queue, &open.source).tls_wish();
        if open.tls != wish {
            let (had, queue) = (open.tls.level.as_str(), queue.clone());
            return Err(format!("mail of {queue}, which wishes {wish:?}, over a session opened {had}").into());
        }
        if wish.is_verified() && open.verified != *host {
            return Err(format!("mail to {host} over a session verified for {}", open.verified).into());
        }
        Ok(())
    }
}
