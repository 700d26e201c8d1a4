//! State in a file: the messages of a conversation, one after another.
//!
//! ```text
//! part   length:u32le number:u8 body    length counts number and body
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use protocol::message::{FRAME_LIMIT, Message};

use super::{Error, StatePart, StateSink};

/// Number of bytes that are written to the file, or read from it, at once.
const BUFFER: usize = 1 << 20;

/// A file that parts are appended to.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    limit: u64,
    writer: Mutex<Writer>,
}

/// The end of the file.
#[derive(Debug)]
struct Writer {
    file: BufWriter<File>,
    /// Number of bytes that may still be written.
    room: u64,
}

impl StateFile {
    /// Makes a new file that only its owner may read and that holds at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::File`], if the file exists or cannot be created.
    pub fn create(path: PathBuf, limit: u64) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(|source| fail(&path, source))?;
        let file = BufWriter::with_capacity(BUFFER, file);
        Ok(Self { path, limit, writer: Mutex::new(Writer { file, room: limit }) })
    }

    /// Returns where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file from its beginning.
    ///
    /// # Errors
    /// [`Error::File`], if what was put cannot be written or the file cannot be opened.
    pub fn read(&self) -> Result<StateReader, Error> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let file = writer.file.flush().and_then(|()| File::open(&self.path));
        let file = file.map_err(|source| fail(&self.path, source))?;
        Ok(StateReader { path: self.path.clone(), file: BufReader::with_capacity(BUFFER, file) })
    }
}

impl StateSink for StateFile {
    fn put(&self, part: StatePart) -> Result<(), Error> {
        let mut frame = vec![0; 4];
        let encoded = Message::from(part).encode(&mut frame);
        encoded.map_err(|source| Error::Codec { path: self.path.clone(), source })?;
        let too_large = Error::TooLarge { limit: self.limit };
        let Ok(length) = u32::try_from(frame.len() - 4) else { return Err(too_large) };
        frame[..4].copy_from_slice(&length.to_le_bytes());
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left) = writer.room.checked_sub(frame.len() as u64) else { return Err(too_large) };
        writer.room = left;
        writer.file.write_all(&frame).map_err(|source| fail(&self.path, source))
    }
}

/// The parts of a file, in order.
#[derive(Debug)]
pub struct StateReader {
    path: PathBuf,
    file: BufReader<File>,
}

impl StateReader {
    fn next_part(&mut self) -> Result<Option<StatePart>, Error> {
        let frame = next_frame(&mut self.file).map_err(|source| fail(&self.path, source))?;
        let Some(frame) = frame else { return Ok(None) };
        let message = Message::decode(&frame)
            .map_err(|source| Error::Codec { path: self.path.clone(), source })?;
        let part = StatePart::try_from(message);
        part.map(Some)
            .map_err(|other| Error::NotState { path: self.path.clone(), name: other.name() })
    }
}

impl Iterator for StateReader {
    type Item = Result<StatePart, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_part().transpose()
    }
}

/// Reads the next frame; `None` at the end of the file.
fn next_frame(file: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    if file.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut length = [0; 4];
    file.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length];
    file.read_exact(&mut frame)?;
    Ok(Some(frame))
}

fn fail(path: &Path, source: io::Error) -> Error {
    Error::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use protocol::message::Data;

    use super::*;

    fn log(bytes: &[u8]) -> StatePart {
        StatePart::LogData(Data(bytes.to_vec()))
    }

    fn contents(file: &StateFile) -> Vec<Vec<u8>> {
        let bytes = |part| match part {
            Ok(StatePart::LogData(Data(bytes))) => bytes,
            other => panic!("{other:?}"),
        };
        file.read().unwrap().map(bytes).collect()
    }

    #[test]
    fn parts_come_again_in_order_and_as_often_as_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::create(dir.path().join("state"), 1 << 20).unwrap();
        assert_eq!(contents(&file), Vec::<Vec<u8>>::new());
        file.put(log(b"one")).unwrap();
        file.put(log(b"two")).unwrap();
        for _ in 0..2 {
            assert_eq!(contents(&file), [b"one".to_vec(), b"two".to_vec()]);
        }
        file.put(log(b"three")).unwrap();
        assert_eq!(contents(&file).len(), 3);
    }

    #[test]
    fn no_more_is_kept_than_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::create(dir.path().join("state"), 1000).unwrap();
        file.put(log(&[0; 500])).unwrap();
        let refused = file.put(log(&[0; 500])).unwrap_err();
        assert!(matches!(refused, Error::TooLarge { limit: 1000 }), "{refused}");
        assert_eq!(contents(&file).len(), 1);
    }

    #[test]
    fn damaged_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let read = |bytes: &[u8]| {
            let path = dir.path().join("state");
            let _ = std::fs::remove_file(&path);
            let file = StateFile::create(path.clone(), 1000).unwrap();
            std::fs::write(&path, bytes).unwrap();
            file.read().unwrap().next()
        };
        let whole = [3, 0, 0, 0, 28, 1, 7];
        assert!(matches!(read(&whole), Some(Ok(StatePart::LogData(_)))));
        assert!(read(&[]).is_none());
        for torn in 1..whole.len() {
            assert!(matches!(read(&whole[..torn]), Some(Err(Error::File { .. }))), "{torn}");
        }
        assert!(matches!(read(&[255; 8]), Some(Err(Error::File { .. }))), "a huge length");
        assert!(matches!(read(&[1, 0, 0, 0, 0]), Some(Err(Error::Codec { .. }))));
        let settled = [17, 0, 0, 0, 44, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        let refused = read(&settled);
        assert!(
            matches!(refused, Some(Err(Error::NotState { name: "Settled", .. }))),
            "{refused:?}"
        );
    }
}
