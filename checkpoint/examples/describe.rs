//! Describes containers of this host twice, by podman's records and by podman itself, and tells the
//! difference, if there is any, and how long each took; as root:
//!
//! ```text
//! describe CONTAINER...
//! ```

use std::error::Error;
use std::time::Instant;

use checkpoint::container::Container;
use checkpoint::podman::Podman;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let memory = tempfile::tempdir()?;
    let podman = Podman::default().remembering(memory.path().join("podman.json"));
    podman.info().await?;
    let mut all_equal = true;
    for name in std::env::args().skip(1) {
        let begun = Instant::now();
        let recorded = podman.recorded(&name);
        let quick = begun.elapsed();
        let begun = Instant::now();
        let inspected = podman.inspect(&name).await;
        let slow = begun.elapsed();
        let verdict = match (&recorded, &inspected) {
            (None, Ok(_)) => "is not plain".to_owned(),
            (None, Err(e)) => format!("cannot be described: {e}"),
            (Some((_, recorded)), Ok((_, inspected))) if is_same(recorded, inspected) => {
                format!("is plain, and the same ({quick:.1?} instead of {slow:.1?})")
            }
            _ => {
                all_equal = false;
                format!("DIFFERS: {recorded:#?} {inspected:#?}")
            }
        };
        println!("{name} {verdict}");
    }
    if all_equal { Ok(()) } else { Err("not all are described alike".into()) }
}

/// Memory in use changes from one look to the next.
fn is_same(one: &Container, other: &Container) -> bool {
    Container { memory_in_use: other.memory_in_use, ..one.clone() } == *other
}
