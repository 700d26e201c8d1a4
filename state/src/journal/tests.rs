use std::net::IpAddr;

use super::*;
use crate::id::HostId;

fn departure() -> Record {
    Record::Departure {
        migration: MigrationId([3; 16]),
        container: "c".repeat(64),
        name: "web".to_owned(),
        addresses: vec![IpAddr::from([10, 88, 0, 2])],
        destination: "b:7472".to_owned(),
        peer: HostId([9; 16]),
        began: 0,
    }
}

#[test]
fn records_are_read_back_and_the_end_leaves_nothing() {
    let state = tempfile::tempdir().unwrap();
    let mut journal = Journal::begin(state.path(), MigrationId([3; 16]), &departure()).unwrap();
    journal.append(&Record::Committed { at: 5 }).unwrap();
    let found = unfinished(state.path()).unwrap();
    assert_eq!(read(&found[0]).unwrap(), [departure(), Record::Committed { at: 5 }]);
    journal.end().unwrap();
    assert_eq!(unfinished(state.path()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a_living_owner_keeps_its_journal() {
    let state = tempfile::tempdir().unwrap();
    let mut journal = Journal::begin(state.path(), MigrationId([3; 16]), &departure()).unwrap();
    let path = unfinished(state.path()).unwrap().remove(0);
    assert!(claim(&path).unwrap().is_none());
    let again = Journal::begin(state.path(), MigrationId([3; 16]), &departure());
    assert!(again.is_err());
    journal.append(&Record::Committed { at: 5 }).unwrap();
    drop(journal);
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"rec").unwrap();
    let (mut journal, records) = claim(&path).unwrap().unwrap();
    assert_eq!(records, [departure(), Record::Committed { at: 5 }]);
    journal.append(&Record::Acknowledged).unwrap();
    assert_eq!(read(&path).unwrap().len(), 3, "the torn record is gone");
    journal.end().unwrap();
    assert!(claim(&path).unwrap().is_none());
    assert_eq!(fs::read_dir(directory(state.path())).unwrap().count(), 0);
}

#[test]
fn what_arrived_is_remembered() {
    let state = tempfile::tempdir().unwrap();
    let id = MigrationId([3; 16]);
    assert_eq!(archived(state.path(), id).unwrap(), None);
    let journal = Journal::begin(state.path(), id, &departure()).unwrap();
    journal.archive(state.path()).unwrap();
    assert_eq!(archived(state.path(), id).unwrap(), Some(vec![departure()]));
    assert_eq!(unfinished(state.path()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn only_those_that_nobody_asks_about_are_forgotten() {
    let state = tempfile::tempdir().unwrap();
    let arrived = state.path().join("arrived");
    let id = |n: u32| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        MigrationId(id)
    };
    fs::create_dir_all(&arrived).unwrap();
    let text = format!("{HEADER}\n");
    for n in 0..3000 {
        fs::write(arrived.join(id(n).to_string()), &text).unwrap();
    }
    let journal = Journal::begin(state.path(), id(9999), &departure()).unwrap();
    journal.archive(state.path()).unwrap();
    assert!((0..3000).all(|n| archived(state.path(), id(n)).unwrap().is_some()));
    for n in 0..2000 {
        settle(state.path(), id(n)).unwrap();
    }
    settle(state.path(), id(123_456)).unwrap();
    let remembered = (0..2000).filter(|n| archived(state.path(), id(*n)).unwrap().is_some());
    assert_eq!(remembered.count(), 1024);
    assert!((2000..3000).all(|n| archived(state.path(), id(n)).unwrap().is_some()));
}

#[test]
fn journals_of_the_version_before_are_read() {
    let state = tempfile::tempdir().unwrap();
    let numbers = |n: u8| format!("[{}]", vec![n.to_string(); 16].join(","));
    let id = "c".repeat(64);
    let text = format!(
        "netmig journal 1\n{{\"record\":\"departure\",\"migration\":{},\"container\":\"{id}\",\
         \"name\":\"web\",\"addresses\":[\"10.88.0.2\"],\"destination\":\"b:7472\",\"peer\":{}}}\n\
         {{\"record\":\"interruption\",\"cgroup\":\"/c\",\"port\":\"veth0\",\"process\":{{\"pid\":7,\
         \"namespace\":\"/n\",\"interface\":\"eth0\"}}}}\n{{\"record\":\"committed\"}}\n",
        numbers(3),
        numbers(9)
    );
    let path = state.path().join("old");
    fs::write(&path, text).unwrap();
    let records = read(&path).unwrap();
    assert_eq!(records[0], departure());
    assert_eq!(records[2], Record::Committed { at: 0 });
    assert_eq!(reached(&records), Departure::Committed);
}

#[test]
fn a_disk_that_cannot_tell_is_not_an_absent_journal() {
    let state = tempfile::tempdir().unwrap();
    let id = MigrationId([3; 16]);
    assert!(!exists(state.path(), id).unwrap());
    // A file where the directory should be: ENOTDIR.
    fs::write(state.path().join("journal"), b"").unwrap();
    assert!(exists(state.path(), id).is_err());
}

#[test]
fn random_bytes_are_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    fs::write(&path, b"\x00\xffrubbish").unwrap();
    assert!(matches!(claim(&path), Err(Error::Foreign { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"\x00\xffrubbish");
}

#[test]
fn a_journal_that_is_too_long_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    let lines = "{\"record\":\"committed\"}\n".repeat(SIZE_LIMIT as usize / 20);
    fs::write(&path, format!("{HEADER}\n{lines}")).unwrap();
    assert!(matches!(claim(&path), Err(Error::File { .. })));
    assert!(matches!(read(&path), Err(Error::File { .. })));
}

#[test]
fn a_torn_last_record_does_not_count() {
    let bytes = format!("{HEADER}\n{{\"record\":\"committed\"}}\n{{\"record\":\"ackn");
    assert_eq!(parse(bytes.as_bytes()), Ok(vec![Record::Committed { at: 0 }]));
}

#[test]
fn damage_and_foreign_files_are_refused() {
    assert_eq!(parse(b""), Err(1));
    assert_eq!(parse(b"\x7fELF\n"), Err(1));
    assert_eq!(parse(b"netmig journal 3\n"), Err(1));
    let damaged = format!("{HEADER}\n{{\"record\":\"committed\"}}\nrubbish\n");
    assert_eq!(parse(damaged.as_bytes()), Err(3));
}
