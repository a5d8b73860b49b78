//! The ZIP itself, written by a thread that may block.

use std::{
    fs::File,
    io::{self, BufWriter, Seek, Write},
};

use tokio::{sync::mpsc, task::JoinHandle};
use zip::{CompressionMethod, ZipWriter, result::ZipError, write::SimpleFileOptions};

/// How many pieces wait for the thread.
const WAITING: usize = 4;

/// The archive could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// The disk, mostly.
    #[error("the archive could not be written")]
    Io(#[from] io::Error),
    /// Ours.
    #[error("the archive could not be built")]
    Zip(#[from] ZipError),
    /// The thread is gone.
    #[error("the thread that writes the archive ended")]
    Ended,
}

enum Piece {
    File(&'static str),
    Bytes(Vec<u8>),
}

/// An archive that is being written to a file that has no name, and so is gone with the process.
pub(super) struct Archive {
    pieces: mpsc::Sender<Piece>,
    thread: JoinHandle<Result<File, ArchiveError>>,
}

impl Archive {
    /// Begins one.
    pub(super) fn begin() -> Self {
        let (pieces, waiting) = mpsc::channel(WAITING);
        Self { pieces, thread: tokio::task::spawn_blocking(|| write(waiting)) }
    }

    /// Begins a file in it.
    pub(super) async fn file(&self, name: &'static str) -> Result<(), ArchiveError> {
        self.pieces.send(Piece::File(name)).await.map_err(|_| ArchiveError::Ended)
    }

    /// Goes on with the file.
    pub(super) async fn bytes(&self, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        self.pieces.send(Piece::Bytes(bytes)).await.map_err(|_| ArchiveError::Ended)
    }

    /// Ends it, and gives the file from its beginning.
    pub(super) async fn end(self) -> Result<File, ArchiveError> {
        drop(self.pieces);
        self.thread.await.map_err(|_| ArchiveError::Ended)?
    }
}

fn write(mut pieces: mpsc::Receiver<Piece>) -> Result<File, ArchiveError> {
    // Large: more than 4 GiB in one file is possible.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated).large_file(true);
    let mut zip = ZipWriter::new(BufWriter::new(tempfile::tempfile()?));
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::File(name) => zip.start_file(name, options)?,
            Piece::Bytes(bytes) => zip.write_all(&bytes)?,
        }
    }
    let mut file = zip.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}
