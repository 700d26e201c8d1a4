//! Removes from a host what migrations have left for the flows of moved containers.

use crate::error::Result;
use crate::host::Host;

/// The number of times that [`FORGET`] runs at most.
const FORGET_ATTEMPTS: usize = 5;
/// The script of [`forget`].
const FORGET: &str = "rm -rf /run/netmig/recover.log /var/lib/netmig/arrived /run/filler
pkill -f -- '--keep$|/proc/self/exe .* keep$'
for i in $(seq 200); do pgrep -f -- '--keep$|/proc/self/exe .* keep$' > /dev/null || break; sleep 0.05; done
nft delete table inet netmig-guard 2> /dev/null
rm -rf /run/netmig/keeper.* /run/netmig/carried
for link in $(ls /sys/class/net | grep ^netmig); do ip link del $link; done
for family in -4 -6; do
    while ip $family rule list | grep -q '^3[0-9][0-9][0-9]:'; do
        ip $family rule del pref $(ip $family rule list | sed -n 's/^\\(3[0-9][0-9][0-9]\\):.*/\\1/p' | head -1)
    done
    for table in $(seq 3001 3004); do ip $family route flush table $table 2> /dev/null; done
done
nft delete table inet netmig 2> /dev/null
rm -rf /run/wireguard/netmig*; true";

/// Removes from a host everything that carries moved connections, and the agents' notes of arrived containers.
pub(crate) fn forget(host: &Host) -> Result<()> {
    host.run(["conntrack", "-F"])?;
    for _ in 0..FORGET_ATTEMPTS {
        host.run(["sh", "-c", FORGET])?;
        // A guardian may have started another reconciler just before it ended.
        if !host.run(["nft", "list", "tables"])?.contains("netmig") {
            break;
        }
    }
    Ok(())
}
