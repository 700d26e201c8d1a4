//! Containers that find the container by name, and that it finds: an engine's name server knows those of its own
//! host.

use std::collections::BTreeSet;

/// So many are named.
const NAMED: usize = 5;

/// Returns what is told where a container's networks have `others` that it knows by name.
pub fn warning(container: &str, others: &BTreeSet<String>) -> Option<String> {
    let named: Vec<&str> = others.iter().map(String::as_str).take(NAMED).collect();
    let more = others.len() - named.len();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (!others.is_empty()).then(|| {
        format!(
            "names of containers are known on the same host alone: {container} and the containers of its \
             networks here do not find each other by name until they have moved, too: {}{more}",
            named.join(", ")
        )
    })
}
