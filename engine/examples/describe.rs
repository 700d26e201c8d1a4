//! Describes containers of this host twice, as a move does (by the engine's records where these tell enough) and
//! by the engine itself, and tells the difference, if there is any, and how long each took; as root:
//!
//! ```text
//! describe CONTAINER...
//! ```

use std::error::Error;
use std::time::Instant;

use engine::inspect::Container;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let engine = engine::detect(Some(directory.path().join("engine.json")));
    engine.keep_configuration().await?;
    let mut all_equal = true;
    for name in std::env::args().skip(1) {
        let begun = Instant::now();
        let described = engine.describe(&name).await;
        let quick = begun.elapsed();
        let begun = Instant::now();
        let inspected = engine.inspect(&name).await;
        let slow = begun.elapsed();
        let verdict = match (&described, &inspected) {
            (_, Err(e)) | (Err(e), _) => format!("cannot be described: {e}"),
            (Ok(described), Ok(inspected)) if is_same(described, inspected) => {
                format!("is described alike ({quick:.1?} instead of {slow:.1?})")
            }
            _ => {
                all_equal = false;
                format!("DIFFERS: {described:#?} {inspected:#?}")
            }
        };
        println!("{name} {verdict}");
    }
    if all_equal { Ok(()) } else { Err("not all are described alike".into()) }
}

/// Removes memory in use, which changes from one look to the next.
fn is_same(one: &Container, other: &Container) -> bool {
    Container { memory_in_use: other.memory_in_use, ..one.clone() } == *other
}
