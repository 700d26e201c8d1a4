//! Sending the pages that a destination lacks, of an original whose agent has died.

use std::sync::Arc;
use std::time::Duration;

use protocol::wire::BulkOptions;
use state::journal::{Journal, Record};

use super::{Departed, Error, Event};
use crate::context::Context;
use crate::source::frozen_original::Original;
use crate::source::memory_service::{MemoryService, is_lost};

/// How long a destination is dialled that was reached before. The guardian begins anew.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends the destination the pages that it lacks until it has all, and notes that it has.
pub(super) async fn serve(
    context: &Context,
    departed: &Departed,
    journal: &mut Journal,
) -> Result<(), Error> {
    let (name, destination) = (departed.name.clone(), departed.peer.destination.clone());
    let original = departed.original().map(Arc::new);
    if original.is_none() {
        context.tell(Event::MemoryGone { name: name.clone(), destination: destination.clone() });
    }
    let state = context.directories.state.clone();
    let (peer, original) = (departed.peer.clone(), Original::new(original));
    let served = async {
        let mut service =
            MemoryService::start(state, peer, original, PATIENCE, BulkOptions::default()).await?;
        context.tell(Event::SendingPages { name, destination: destination.clone() });
        service.finished(context, &destination).await
    };
    match served.await {
        Ok(served) => {
            context.tell(Event::PagesSent { bytes: served.all, is_whole: served.is_whole });
            journal.append(&Record::Acknowledged).map_err(|e| Error::Begin(e.into()))
        }
        Err(source) if is_lost(&source) => Err(Error::CopyLost { destination, source }),
        Err(source) => Err(Error::PagesOutstanding { destination, source }),
    }
}
