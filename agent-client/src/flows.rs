//! `agent-client flows`: what this host carries, for whom.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::HumanBytes;
use state::cause::Cause;
use state::directories::Directories;
use steering::carried_flows::{self, CarriedFlow};

/// Lists the flows on standard output.
pub async fn run(directories: &Directories, json: bool) -> Result<(), Cause> {
    let flows = carried_flows::list(directories).await?;
    if json {
        println!("{}", serde_json::json!({ "flows": flows }));
    } else {
        print(&flows);
    }
    Ok(())
}

fn print(flows: &[CarriedFlow]) {
    if flows.is_empty() {
        println!("This host carries no flows.");
        return;
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "container",
        "here",
        "peer",
        "tunnel",
        "",
        "direction",
        "from",
        "to",
        "bytes",
        "moved",
    ]);
    for line in flows {
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.add_row([
            or_unknown(line.container.clone()),
            format!("{:?}", line.role).to_lowercase(),
            line.peer_address.map_or_else(|| line.peer.to_string(), |address| address.to_string()),
            or_unknown(line.tunnel.clone()),
            line.protocol.to_string(),
            line.direction.to_owned(),
            line.original.from.to_string(),
            line.original.to.to_string(),
            or_unknown(line.bytes.map(|[a, b]| HumanBytes(a.saturating_add(b)).to_string())),
            or_unknown(line.age.map(|seconds| format!("{seconds} s ago"))),
        ]);
    }
    println!("{table}");
}
