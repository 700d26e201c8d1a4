//! What the machine has: CRIU, a processor, memory.

use std::collections::BTreeSet;
use std::fs;

use checkpoint::criu;
use state::cause::Cause;
use state::host;

use crate::offer::Offer;

/// Looks whether CRIU is here, and can read the images.
pub(super) async fn check_criu(
    here: &str,
    offer: &Offer,
    block: &mut impl FnMut(&str, String),
) -> Result<(), Cause> {
    let program = match host::find_program("criu") {
        Ok(program) => program,
        Err(e) => {
            block("criu-missing", format!("{here}: {e}"));
            return Ok(());
        }
    };
    let found = criu::version(&program).await?;
    if let Err(e) = criu::check_kernel(found, &host::kernel_release()?) {
        block("criu-version", format!("{here}: {e}"));
    } else if (found.major, found.minor) < (offer.criu.0, offer.criu.1) {
        block(
            "criu-version",
            format!(
                "{here} has CRIU {}.{}, which cannot be relied on to read images of {}.{}",
                found.major, found.minor, offer.criu.0, offer.criu.1
            ),
        );
    }
    Ok(())
}

/// Flags that the source's processor has and this one lacks: code that was running there may use
/// any of them.
pub(super) fn missing_cpu_flags(offered: &[String]) -> Result<Vec<String>, Cause> {
    let ours: BTreeSet<String> =
        host::cpu_flags(&fs::read_to_string("/proc/cpuinfo")?).into_iter().collect();
    Ok(offered.iter().filter(|flag| !ours.contains(*flag)).cloned().collect())
}
