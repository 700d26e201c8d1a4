//! The parts of CRIU's requests and notifications that the gate reads (`images/rpc.proto`), in protobuf's wire format
//! (<https://protobuf.dev/programming-guides/encoding/>).

use crate::protobuf::{Value, fields, put_field};

/// `criu_req.type` and `criu_resp.type`.
const TYPE: u64 = 1;
/// `criu_req.opts`.
const OPTIONS: u64 = 2;
/// `criu_opts`: `images_dir_fd`, `work_dir_fd`, `status_fd`.
const DESCRIPTORS: [u64; 3] = [1, 17, 49];
/// `criu_opts.lazy_pages`.
const LAZY_PAGES: u64 = 48;
/// `criu_resp.notify`.
const NOTIFY: u64 = 5;
/// `criu_notify.script`.
const SCRIPT: u64 = 1;
/// `criu_notify.pid`.
const PID: u64 = 2;
/// `criu_req_type`: a dump.
const DUMP: u64 = 1;
/// `criu_req_type`: a restore.
const RESTORE: u64 = 2;

/// What CRIU tells before it goes on; it waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notification {
    /// The moment, such as `pre-resume`.
    pub(super) script: String,
    /// The first process of what is restored, where CRIU names it.
    pub(super) pid: Option<i32>,
}

/// Returns whether a request is a dump or a restore.
pub(super) fn is_operation(request: &[u8]) -> bool {
    matches!(fields(request).next(), Some((TYPE, Value::Varint(DUMP | RESTORE))))
}

/// Returns a request with lazy pages in its options. The later value of a field counts.
pub(super) fn with_lazy_pages(request: &[u8]) -> Vec<u8> {
    let mut changed = Vec::with_capacity(request.len() + 16);
    for (number, value) in fields(request) {
        match value {
            Value::Bytes(options) if number == OPTIONS => {
                let mut options = options.to_vec();
                put_field(&mut options, LAZY_PAGES, Value::Varint(1));
                put_field(&mut changed, number, Value::Bytes(&options));
            }
            other => put_field(&mut changed, number, other),
        }
    }
    changed
}

/// Returns the numbers by which a request names files of the process that has made its socket.
pub(super) fn descriptors(request: &[u8]) -> Vec<i32> {
    let mut numbers = Vec::new();
    for field in fields(request) {
        let (OPTIONS, Value::Bytes(options)) = field else { continue };
        numbers.extend(fields(options).filter_map(|field| match field {
            (name, Value::Varint(number)) if DESCRIPTORS.contains(&name) => {
                // Absent files have negative numbers, which protobuf extends to 64 bits.
                i32::try_from(number).ok()
            }
            _ => None,
        }));
    }
    numbers
}

/// Returns what a message of CRIU notifies of, if it does.
pub(super) fn notification(message: &[u8]) -> Option<Notification> {
    let notify = fields(message).find_map(|field| match field {
        (NOTIFY, Value::Bytes(bytes)) => Some(bytes),
        _ => None,
    })?;
    let mut script = None;
    let mut pid = None;
    for field in fields(notify) {
        match field {
            (SCRIPT, Value::Bytes(bytes)) => {
                script = std::str::from_utf8(bytes).ok().map(str::to_owned);
            }
            (PID, Value::Varint(number)) => pid = i32::try_from(number).ok(),
            _ => {}
        }
    }
    Some(Notification { script: script?, pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_told_from_other_requests() {
        for (request, is_one) in [
            (&[0x08, 1, 0x12, 0][..], true),
            (&[0x08, 2, 0x12, 0][..], true),
            (&[0x08, 10][..], false),
            (&[0x12, 1][..], false),
            (&[0x08][..], false),
            (&[][..], false),
        ] {
            assert_eq!(is_operation(request), is_one, "{request:?}");
        }
    }

    #[test]
    fn files_of_the_runtime_are_named_by_number() {
        // type RESTORE, opts { images_dir_fd: 7, pid: 300, work_dir_fd: 12, status_fd: -1 }
        let mut options = vec![0x08, 7, 0x10, 0xac, 0x02, 0x88, 0x01, 12, 0x88, 0x03];
        options.extend([0xff; 9]);
        options.push(1);
        let request = [&[0x08, 2, 0x12, options.len() as u8][..], &options].concat();
        assert_eq!(descriptors(&request), [7, 12]);
        assert_eq!(descriptors(&[0x08, 10]), [0; 0]);
    }

    #[test]
    fn lazy_pages_are_one_more_option() {
        // type RESTORE, opts { images_dir_fd: 7, lazy_pages: false }, keep_open: true
        let request = [0x08, 2, 0x12, 5, 0x08, 7, 0x80, 0x03, 0, 0x20, 1];
        let lazy = [0x08, 2, 0x12, 8, 0x08, 7, 0x80, 0x03, 0, 0x80, 0x03, 1, 0x20, 1];
        assert_eq!(with_lazy_pages(&request), lazy);
    }

    #[test]
    fn notifications_are_read() {
        // type 4 (NOTIFY), success, notify { script: "post-restore", pid: 300 }
        let mut message = vec![0x08, 4, 0x10, 1, 0x2a, 17, 0x0a, 12];
        message.extend(b"post-restore");
        message.extend([0x10, 0xac, 0x02]);
        let told = Notification { script: "post-restore".to_owned(), pid: Some(300) };
        assert_eq!(notification(&message), Some(told));
        let resume = [&[0x08, 4, 0x10, 1, 0x2a, 12, 0x0a, 10][..], b"pre-resume"].concat();
        let told = Notification { script: "pre-resume".to_owned(), pid: None };
        assert_eq!(notification(&resume), Some(told));
        assert_eq!(notification(&[0x08, 2, 0x10, 1]), None);
        for length in 0..message.len() {
            // No panic, whatever comes.
            let _ = notification(&message[..length]);
        }
        assert_eq!(notification(&[0xff; 32]), None);
    }
}
