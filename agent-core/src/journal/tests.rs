use super::*;

fn departure() -> Record {
    Record::Departure {
        migration: MigrationId([3; 16]),
        container: "c".repeat(64),
        name: "web".to_owned(),
        addresses: vec![IpAddr::from([10, 88, 0, 2])],
        destination: "b:7472".to_owned(),
        peer: HostId([9; 16]),
    }
}

#[test]
fn records_are_read_back_and_the_end_leaves_nothing() {
    let state = tempfile::tempdir().unwrap();
    let mut journal = Journal::begin(state.path(), MigrationId([3; 16]), &departure()).unwrap();
    journal.append(&Record::Committed).unwrap();
    let found = unfinished(state.path()).unwrap();
    assert_eq!(read(&found[0]).unwrap(), [departure(), Record::Committed]);
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
    journal.append(&Record::Committed).unwrap();
    drop(journal);
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"rec").unwrap();
    let (mut journal, records) = claim(&path).unwrap().unwrap();
    assert_eq!(records, [departure(), Record::Committed]);
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
fn only_so_many_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..ARCHIVED + 3 {
        fs::write(dir.path().join(n.to_string()), b"").unwrap();
    }
    prune(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), ARCHIVED);
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
    assert_eq!(parse(bytes.as_bytes()), Ok(vec![Record::Committed]));
}

#[test]
fn damage_and_foreign_files_are_refused() {
    assert_eq!(parse(b""), Err(1));
    assert_eq!(parse(b"\x7fELF\n"), Err(1));
    assert_eq!(parse(b"netmig journal 2\n"), Err(1));
    let damaged = format!("{HEADER}\n{{\"record\":\"committed\"}}\nrubbish\n");
    assert_eq!(parse(damaged.as_bytes()), Err(3));
}
