//! Settings that CRIU does not restore. The tables of what may be set check them where they are set.

use checkpoint::cgroup::CgroupSetting;
use checkpoint::socket_options::{Membership, SocketSettings, Value};
use checkpoint::tasks::TaskSettings;
use protocol::message as wire;

use super::{Refused, Wire, plain_fields, same_fields};

/// Settings that are not at their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Settings of sockets.
    pub sockets: Vec<SocketSettings>,
    /// Settings of threads.
    pub tasks: Vec<TaskSettings>,
    /// Settings of the container's cgroup.
    pub cgroup: Vec<CgroupSetting>,
}

plain_fields! {
    Membership => wire::Membership { interface, group, is_exclusive, senders }
    TaskSettings => wire::TaskSettings { thread, processors, io_priority, timer_slack, coredump_filter }
    CgroupSetting => wire::CgroupSetting { file, value }
}

same_fields! {
    Settings => wire::Settings { sockets, tasks, cgroup }
}

impl Wire for SocketSettings {
    type Form = wire::SocketSettings;

    fn into_wire(self) -> wire::SocketSettings {
        let Self { process, descriptor, values, groups } = self;
        let options = values.into_wire();
        wire::SocketSettings { process, descriptor, options, groups: groups.into_wire() }
    }

    fn from_wire(form: wire::SocketSettings) -> Result<Self, Refused> {
        let wire::SocketSettings { process, descriptor, options, groups } = form;
        let (values, groups) = (Vec::from_wire(options)?, Vec::from_wire(groups)?);
        Ok(Self { process, descriptor, values, groups })
    }
}

impl Wire for Value {
    type Form = wire::SocketOption;

    fn into_wire(self) -> wire::SocketOption {
        wire::SocketOption { name: self.option, value: self.value }
    }

    fn from_wire(wire::SocketOption { name, value }: wire::SocketOption) -> Result<Self, Refused> {
        Ok(Self { option: name, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    #[test]
    fn settings_come_back() {
        let group = Membership {
            interface: "eth0".to_owned(),
            group: [224, 0, 0, 251].into(),
            is_exclusive: true,
            senders: vec![[192, 0, 2, 3].into()],
        };
        let option = Value { option: "TCP_SYNCNT".to_owned(), value: vec![3, 0, 0, 0] };
        let socket =
            SocketSettings { process: 1, descriptor: 3, values: vec![option], groups: vec![group] };
        let task = TaskSettings {
            thread: 7,
            processors: Some(vec![0, 3]),
            io_priority: Some(5),
            timer_slack: Some(50_000),
            coredump_filter: Some(0x33),
        };
        let cgroup = CgroupSetting { file: "memory.high".to_owned(), value: "max".to_owned() };
        let (sockets, tasks, cgroup) = (vec![socket], vec![task], vec![cgroup]);
        comes_back(&Settings { sockets, tasks, cgroup });
    }
}
