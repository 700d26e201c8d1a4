//! Servers whose clients open connection after connection: none of them is refused, reset or lost.

use std::time::Duration;

use crate::build::PROBE;
use crate::ensure;
use crate::error::Result;
use crate::runner::{Case, Context};
use crate::traffic::report::RequestsReport;

pub(super) const CASES: &[Case] = &[Case::new("fidelity-busy-web-server", &["fidelity"], web)];

/// How long the clients may take to get an answer, and to end.
const LIMIT: Duration = Duration::from_secs(30);
/// Clients at a time. Each opens a connection for each request.
const CLIENTS: &str = "16";
const HOPS: [(&str, &str); 6] =
    [("a", "b"), ("b", "a"), ("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")];

fn web(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    let run = ["run", "--detach", "--name", "www", "--publish", "80:80", "nginx:1", "sh", "-c"];
    let serve = "seq 1000 >/srv/numbers; exec nginx -c /etc/nginx.conf";
    a.podman([&run[..], &[serve]].concat())?;
    let answers = "--silent --fail --retry 20 --retry-connrefused --retry-delay 1 http://a/numbers";
    c.command("curl").args(answers.split(' ')).run()?;
    let server = a.port(80).to_string();
    let ask = ["requests", &server, "--path", "/numbers", "--clients", CLIENTS];
    let mut clients = c.command(PROBE).args(ask).args(["--until-stdin-closes"]).spawn()?;
    clients.wait_for("ready", LIMIT)?;
    let mut interruptions = Vec::new();
    for (from, to) in HOPS {
        std::thread::sleep(Duration::from_millis(300));
        let migration = lab.attempt("www", from, to, &["--forward"])?.success()?;
        interruptions.push(format!("{:.0}", migration.interruption_ms));
    }
    std::thread::sleep(Duration::from_secs(1));
    clients.close_stdin();
    let seen: RequestsReport = clients.wait(LIMIT)?.success()?.json()?;
    ensure!(seen.failed == 0 && seen.answered > 100, "{seen:?}");
    context.remark(format!(
        "{} requests, the longest {:.0} ms; interruptions {} ms",
        seen.answered,
        seen.longest_ms,
        interruptions.join(", ")
    ));
    Ok(())
}
