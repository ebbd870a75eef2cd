//! Lines of a file, plain or gzip, one at a time.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Result, anyhow};
use flate2::bufread::MultiGzDecoder;

use super::super::read;

/// A file being read. Line numbers are those of the text, decompressed where it is gzip.
pub(super) struct Lines {
    path: PathBuf,
    text: Box<dyn BufRead>,
    bytes_read: Rc<Cell<u64>>,
    number: usize,
    line: Vec<u8>,
}

/// What to say of an error of reading.
fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "the gzip file is cut short here: download it again".into(),
        ErrorKind::InvalidInput | ErrorKind::InvalidData => {
            format!("the gzip data is damaged ({error}): download it again")
        }
        _ => error.to_string(),
    }
}

/// Counts what is read from the disk.
struct Counted(File, Rc<Cell<u64>>);

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.set(self.1.get() + count as u64);
        Ok(count)
    }
}

impl Lines {
    /// Opens a file; whether it is gzip is seen from its first bytes.
    pub fn open(path: &Path) -> Result<Lines> {
        let bytes_read = Rc::new(Cell::new(0));
        let mut text: Box<dyn BufRead> = File::open(path)
            .and_then(|file| {
                let mut raw = BufReader::with_capacity(1 << 16, Counted(file, bytes_read.clone()));
                Ok(match raw.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
                    true => Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(raw)))
                        as Box<dyn BufRead>,
                    false => Box::new(raw),
                })
            })
            .map_err(|error| anyhow!("{}: cannot be opened ({error})", path.display()))?;
        let begin = text.fill_buf();
        let begin = begin.map_err(|error| read::at(path, 1, unreadable(&error)))?;
        // A byte order mark is not part of the text.
        if begin.starts_with(b"\xef\xbb\xbf") {
            text.consume(3);
        }
        Ok(Lines {
            path: path.into(),
            text,
            bytes_read,
            number: 0,
            line: Vec::new(),
        })
    }

    /// Bytes of the file read so far, as they are on the disk.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.get()
    }

    /// An error at the latest line.
    pub fn fault(&self, message: String) -> anyhow::Error {
        read::at(&self.path, self.number, message)
    }

    /// Goes on to the next line that is not blank; false at the end of the file.
    ///
    /// # Errors
    /// The file cannot be read, its gzip data is damaged or cut short, or a line is beyond any record's length.
    pub fn advance(&mut self) -> Result<bool> {
        loop {
            self.number += 1;
            match read::next_line(&mut self.text, &mut self.line) {
                Ok(false) => return Ok(false),
                Ok(true) if self.line.trim_ascii().is_empty() => {}
                Ok(true) => return Ok(true),
                Err(error) => return Err(self.fault(unreadable(&error))),
            }
        }
    }

    /// The latest line, without its end. Errors: it is not UTF-8.
    pub fn utf8(&self) -> Result<&str, String> {
        read::utf8(self.line.trim_ascii_end())
    }

    /// The latest line, without its end: as UTF-8 if it is, else as Latin-1, which older files are in.
    pub fn utf8_or_latin1(&self) -> std::borrow::Cow<'_, str> {
        let line = self.line.trim_ascii_end();
        match std::str::from_utf8(line) {
            Ok(text) => text.into(),
            Err(_) => line
                .iter()
                .map(|&byte| byte as char)
                .collect::<String>()
                .into(),
        }
    }
}
