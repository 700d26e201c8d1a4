//! Memory that goes over after the decision (post-copy): the server of pages at the destination, and what it lacks.

use ownership::destination::{Holding, Reply, Server};
use ownership::source::Answer;

use crate::state::{Departed, Migration, Mover, Question, Remembered, Run, Staged, State};
use crate::world::World;

/// The memory of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pages {
    /// It came with the copy, or there is none yet.
    Here,
    /// Pages are missing; a server of pages keeps the processes that need them waiting.
    Missing,
    /// All have arrived, and nothing on disk says so yet.
    Arrived,
    /// The server was killed, or told that the pages cannot be had. The processes have ended with it.
    Never,
}

impl World {
    /// Hears that the source sends the pages that are missing, or, unless `has_memory`, that it cannot.
    pub fn hear_pages(
        &self,
        state: &mut State,
        m: Migration,
        has_memory: bool,
        reply: Reply,
    ) -> Answer {
        if reply == Reply::Whole {
            return Answer::Done;
        }
        if reply != Reply::Fetch {
            return crate::destination::meaning(reply);
        }
        match (state.moves[m].pages, has_memory) {
            (Pages::Missing, true) => {
                state.moves[m].pages = Pages::Arrived;
                state.moves[m].all_pages = true;
            }
            (Pages::Missing, false) => self.end_without_pages(state, m),
            _ => {}
        }
        self.settle_pages(state, m);
        match state.moves[m].memory {
            Some(Remembered::HandedOver) => Answer::Done,
            Some(Remembered::Lost) => Answer::Lost,
            _ => Answer::Undecided,
        }
    }

    /// Returns whether what a destination remembers of the pages of an arrival is out of date.
    pub fn can_settle_pages(&self, state: &State, m: Migration) -> bool {
        let this = &state.moves[m];
        this.memory == Some(Remembered::Outstanding) && this.pages != Pages::Missing
    }

    /// Notes what has become of an arrival whose memory had not arrived whole.
    pub fn settle_pages(&self, state: &mut State, m: Migration) {
        if state.moves[m].memory != Some(Remembered::Outstanding) {
            return;
        }
        let found = match state.moves[m].pages {
            Pages::Missing => Server::Working,
            Pages::Here | Pages::Arrived => Server::Whole,
            Pages::Never => Server::Gone,
        };
        state.moves[m].memory = Some(match self.rules.settle_pages(found) {
            Holding::Lost => Remembered::Lost,
            Holding::Outstanding => Remembered::Outstanding,
            _ => Remembered::HandedOver,
        });
    }

    /// The server of pages is killed, or learns that there are no more pages: the processes of the copy end.
    pub fn end_without_pages(&self, state: &mut State, m: Migration) {
        state.moves[m].pages = Pages::Never;
        state.moves[m].copy = state.moves[m].copy.map(|_| Staged::DEAD);
        let handed_over = state.moves[m].handed_over;
        if let Some(container) = state.engine_mut(self.route(m).to).as_mut().filter(|_| handed_over)
        {
            container.run = Run::Stopped;
        }
    }

    /// The original's memory can be had: it was not ended, nor set going.
    pub fn has_memory(&self, state: &State, m: Migration) -> bool {
        let incarnation = state.moves[m].departure.map(|Departed { incarnation, .. }| incarnation);
        state.engine(self.route(m).from).is_some_and(|container| {
            container.run == Run::Frozen && Some(container.incarnation) == incarnation
        })
    }

    /// Takes the next step after the destination's answer to a source that offers pages.
    pub fn hear_of_pages(&self, state: &mut State, m: Migration, answer: Answer) {
        use ownership::source::Next;
        state.disconnect(m);
        state.moves[m].mover = match self.rules.after_pages(answer) {
            Next::Proceed => Mover::PagesSent,
            Next::GoBack => Mover::Undoing,
            Next::AskAgain => Mover::ToAsk(Question::Pages),
            Next::AskPerson => Mover::InDoubt,
        };
    }
}
