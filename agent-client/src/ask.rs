//! The questions of an interactive run.

use engine::Kind;
use engine::inspect::Summary;
use inquire::validator::Validation;
use inquire::{CustomType, InquireError, Select, Text};

use state::peer_address::DEFAULT_PORT;

use state::peer_address::Destination;

/// The questions could not be asked or were not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Esc or Ctrl-C at a question.
    #[error("nothing was chosen; nothing was changed")]
    Cancelled,
    /// Something else than the container's name was typed.
    #[error("that is not the name of the container; nothing was changed")]
    NotConfirmed,
    /// No container runs here.
    #[error("no container runs on this host; start one with {0} first")]
    NothingRuns(Kind),
    /// The terminal failed.
    #[error("cannot ask on this terminal")]
    Terminal(#[source] InquireError),
}

impl From<InquireError> for Error {
    fn from(error: InquireError) -> Self {
        match error {
            InquireError::OperationCanceled | InquireError::OperationInterrupted => Self::Cancelled,
            other => Self::Terminal(other),
        }
    }
}

/// Asks where to go: host, then port.
pub fn destination() -> Result<Destination, Error> {
    let host = Text::new("Destination host:")
        .with_validator(|text: &str| {
            Ok(match text.parse::<Destination>() {
                Ok(_) => Validation::Valid,
                Err(reason) => Validation::Invalid(reason.into()),
            })
        })
        .prompt()?;
    let mut destination: Destination = host
        .parse()
        .map_err(|reason: String| Error::Terminal(InquireError::Custom(reason.into())))?;
    // A port given with the host is the default of the next question.
    let offered = if destination.port == 0 { DEFAULT_PORT } else { destination.port };
    destination.port = CustomType::<u16>::new("Port of agent-server:")
        .with_default(offered)
        .with_error_message("a number from 1 to 65535")
        .with_validator(|port: &u16| {
            Ok(match port {
                0 => Validation::Invalid("a number from 1 to 65535".into()),
                _ => Validation::Valid,
            })
        })
        .prompt()?;
    Ok(destination)
}

/// Lets the user pick one of the running containers; gives its ID.
pub fn container(engine: Kind, running: Vec<Summary>) -> Result<String, Error> {
    if running.is_empty() {
        return Err(Error::NothingRuns(engine));
    }
    let widest = running.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let lines: Vec<String> = running
        .iter()
        .map(|c| {
            let ports: Vec<String> = c
                .ports
                .iter()
                .map(|p| format!("{}->{}/{}", p.host_port, p.container_port, p.protocol))
                .collect();
            format!("{:<widest$}  {}  {}", c.name, c.image, ports.join(", "))
        })
        .collect();
    let picked = Select::new("Container to move:", lines).raw_prompt()?;
    Ok(running.into_iter().nth(picked.index).map(|c| c.id).unwrap_or_default())
}

/// Makes sure that a person means it: the container's name has to be typed out.
pub fn rollback(container: &str) -> Result<(), Error> {
    let question = format!(
        "If {container} runs anywhere else, two of it will run from now on. \
         Type the container's name to let it run here again:"
    );
    if Text::new(&question).prompt()?.trim() == container {
        Ok(())
    } else {
        Err(Error::NotConfirmed)
    }
}
