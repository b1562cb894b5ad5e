//! Progress and results of long work, on streams whose reader may go away (`2>&1 | head`): that
//! ends neither the work nor its exit status, so what cannot be written is dropped.

use std::fmt::Display;
use std::io::{Result, Write};

/// A stream that takes everything, and passes on what it can.
#[derive(Debug)]
pub struct Lenient<W>(pub W);

impl<W: Write> Write for Lenient<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Writes a line to standard output. `println!` panics where nobody reads.
pub fn tell(line: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Writes a line to standard error.
pub fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe that nobody reads.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _bytes: &[u8]) -> Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> Result<()> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn fault_29_a_closed_stream_takes_everything() {
        let mut stream = Lenient(Closed);
        writeln!(stream, "a line").unwrap();
        stream.flush().unwrap();
    }
}
