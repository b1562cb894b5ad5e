//! The nodes in a ring: each sends to the next and receives from the one before it.
//!
//! A sum goes around twice: first each part of the values gathers the addends, then the finished
//! parts are handed on. So every node sends and receives `2 · bytes · (n − 1) / n`, each part is
//! added up in one order, and all nodes end with the same bits.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Longest message that [`Ring::gather`] takes from another node.
const LONGEST: u64 = 64 << 20;

/// An exchange that came to no end.
#[derive(Debug)]
pub(super) struct Lost {
    /// The neighbour at whose connection it ended.
    pub rank: usize,
    /// What the system says; [`ErrorKind::TimedOut`] at the deadline.
    pub error: Error,
}

/// A node's place among the others.
#[derive(Debug)]
pub(super) struct Ring {
    rank: usize,
    count: usize,
    /// To the node after this one.
    next: TcpStream,
    /// From the node before it.
    previous: TcpStream,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

impl Ring {
    /// A ring of at least two nodes over connections that are there.
    pub fn new(
        rank: usize,
        count: usize,
        next: TcpStream,
        previous: TcpStream,
    ) -> std::io::Result<Self> {
        for stream in [&next, &previous] {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
        }
        Ok(Self {
            rank,
            count,
            next,
            previous,
            outgoing: Vec::new(),
            incoming: Vec::new(),
        })
    }

    /// The rank `steps` places before this one.
    fn before(&self, steps: usize) -> usize {
        (self.rank + self.count - steps % self.count) % self.count
    }

    /// A message from every node, in the order of ranks.
    pub fn gather(&mut self, mine: Vec<u8>, deadline: Instant) -> Result<Vec<Vec<u8>>, Lost> {
        let mut all = vec![Vec::new(); self.count];
        all[self.rank] = mine;
        for turn in 0..self.count - 1 {
            let (sent, received) = (self.before(turn), self.before(turn + 1));
            let mut length = [0; 8];
            let own = (all[sent].len() as u64).to_le_bytes();
            self.turn(deadline, &own, &mut length)?;
            let length = u64::from_le_bytes(length);
            if length > LONGEST {
                return Err(Lost {
                    rank: self.before(1),
                    error: Error::new(ErrorKind::InvalidData, "not a message of a node"),
                });
            }
            let mut message = vec![0; length as usize];
            self.turn(deadline, &all[sent], &mut message)?;
            all[received] = message;
        }
        Ok(all)
    }

    /// Replaces values by their sums over all nodes. All nodes give as many.
    pub fn sum(&mut self, values: &mut [f32], deadline: Instant) -> Result<(), Lost> {
        for turn in 0..self.count - 1 {
            let (sent, received) = (self.before(turn), self.before(turn + 1));
            self.pass(values, sent, received, deadline, |own, other| *own += other)?;
        }
        // Now this node has the sum of the part after its own.
        for turn in 0..self.count - 1 {
            let (sent, received) = (self.before(turn + self.count - 1), self.before(turn));
            self.pass(values, sent, received, deadline, |own, other| *own = other)?;
        }
        Ok(())
    }

    /// Sends one part of the values on and takes another in.
    fn pass(
        &mut self,
        values: &mut [f32],
        sent: usize,
        received: usize,
        deadline: Instant,
        take: impl Fn(&mut f32, f32),
    ) -> Result<(), Lost> {
        let part = |index: usize| part(values.len(), index, self.count);
        let (sent, received) = (part(sent), part(received));
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.resize(sent.len() * size_of::<f32>(), 0);
        for (four, value) in outgoing.chunks_exact_mut(4).zip(&values[sent]) {
            four.copy_from_slice(&value.to_le_bytes());
        }
        let mut incoming = std::mem::take(&mut self.incoming);
        incoming.resize(received.len() * size_of::<f32>(), 0);
        let passed = self.turn(deadline, &outgoing, &mut incoming);
        if passed.is_ok() {
            for (own, four) in values[received].iter_mut().zip(incoming.chunks_exact(4)) {
                take(
                    own,
                    f32::from_le_bytes([four[0], four[1], four[2], four[3]]),
                );
            }
        }
        (self.outgoing, self.incoming) = (outgoing, incoming);
        passed
    }

    /// Sends and receives at the same time: a node that only sent would wait forever once all
    /// buffers on the way around are full.
    fn turn(&self, deadline: Instant, out: &[u8], into: &mut [u8]) -> Result<(), Lost> {
        let (sent, received) = std::thread::scope(|scope| {
            let send = || write_all(&self.next, out, deadline);
            let sender = match std::thread::Builder::new().spawn_scoped(scope, send) {
                Ok(sender) => sender,
                Err(error) => return (Ok(Err(error)), Ok(())),
            };
            let received = read_exact(&self.previous, into, deadline);
            if received.is_err() {
                // Nothing is to be gained from what is still being sent. The first error is told.
                let _ = self.next.shutdown(Shutdown::Both);
            }
            let sent = sender.join();
            (sent, received)
        });
        received.map_err(|error| Lost {
            rank: self.before(1),
            error,
        })?;
        let sent = sent.unwrap_or_else(|_| Err(Error::other("the sending thread ended")));
        sent.map_err(|error| Lost {
            rank: (self.rank + 1) % self.count,
            error,
        })
    }
}

/// Part `index` of `count` parts of `values`, as equal as possible.
fn part(values: usize, index: usize, count: usize) -> Range<usize> {
    values * index / count..values * (index + 1) / count
}

/// Time left until the deadline; an error if there is none.
fn left(deadline: Instant) -> std::io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

/// Says a time-out the same way on all systems; an interrupted call is to be repeated.
fn passing(error: Error) -> std::io::Result<usize> {
    match error.kind() {
        ErrorKind::Interrupted => Ok(0),
        ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
        _ => Err(error),
    }
}

/// Fills a buffer before the deadline.
pub(super) fn read_exact(
    mut stream: &TcpStream,
    into: &mut [u8],
    deadline: Instant,
) -> std::io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        stream.set_read_timeout(Some(left(deadline)?))?;
        done += match stream.read(&mut into[done..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) => passing(error)?,
        };
    }
    Ok(())
}

/// Sends a buffer before the deadline.
pub(super) fn write_all(
    mut stream: &TcpStream,
    out: &[u8],
    deadline: Instant,
) -> std::io::Result<()> {
    let mut done = 0;
    while done < out.len() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        done += match stream.write(&out[done..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) => passing(error)?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Rings of this many nodes on this machine.
    fn rings(count: usize) -> Vec<Ring> {
        let listeners: Vec<TcpListener> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"))
            .collect();
        let next: Vec<TcpStream> = (0..count)
            .map(|rank| {
                let address = listeners[(rank + 1) % count].local_addr().expect("bound");
                TcpStream::connect(address).expect("connects")
            })
            .collect();
        let previous = listeners.iter().map(|l| l.accept().expect("accepts").0);
        let both = next.into_iter().zip(previous).enumerate();
        both.map(|(rank, (next, previous))| Ring::new(rank, count, next, previous).expect("a ring"))
            .collect()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// Runs something on every node at once.
    fn all<T: Send>(count: usize, work: impl Fn(&mut Ring) -> T + Sync) -> Vec<T> {
        let work = &work;
        std::thread::scope(|scope| {
            let each = rings(count).into_iter();
            let each = each.map(|mut ring| scope.spawn(move || work(&mut ring)));
            let threads: Vec<_> = each.collect();
            let joined = threads.into_iter().map(|t| t.join().expect("no panic"));
            joined.collect()
        })
    }

    #[test]
    fn sums_are_right_and_the_same_everywhere() {
        for count in [2, 3, 5] {
            // Fewer values than nodes, and more than the buffers of a connection hold.
            for length in [0, 1, 4, 1000, 3_000_000 / count] {
                let value = |rank: usize, i: usize| 0.1 + (rank * 7 + i % 13) as f32 / 3.0;
                let sums = all(count, |ring| {
                    let mut values: Vec<f32> = (0..length).map(|i| value(ring.rank, i)).collect();
                    ring.sum(&mut values, soon()).expect("a sum");
                    values
                });
                for (i, sum) in sums[0].iter().enumerate() {
                    let expected: f64 = (0..count).map(|rank| f64::from(value(rank, i))).sum();
                    assert!(
                        (f64::from(*sum) - expected).abs() < 1e-5 * expected,
                        "{count} nodes, value {i}: {sum} and {expected}"
                    );
                }
                let bits = |values: &Vec<f32>| -> Vec<u32> {
                    values.iter().map(|value| value.to_bits()).collect()
                };
                assert!(sums.iter().all(|other| bits(other) == bits(&sums[0])));
            }
        }
    }

    #[test]
    fn messages_of_all_nodes_come_in_the_order_of_ranks() {
        let message = |rank: usize| vec![rank as u8; [0, 3, 200_000, 1][rank]];
        let all = all(4, |ring| {
            ring.gather(message(ring.rank), soon()).expect("messages")
        });
        for of_node in all {
            assert!(of_node.into_iter().eq((0..4).map(message)));
        }
    }

    #[test]
    fn a_node_that_leaves_or_is_silent_ends_the_exchange() {
        let mut rings = rings(2);
        let start = Instant::now();
        let deadline = start + Duration::from_millis(300);
        // More than the buffers hold, so that the sender waits too.
        let lost = rings[0].sum(&mut vec![1.0; 20_000_000], deadline);
        let lost = lost.expect_err("nobody answers");
        assert_eq!(
            (lost.rank, lost.error.kind()),
            (1, ErrorKind::TimedOut),
            "{lost:?}"
        );
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert!(start.elapsed() < Duration::from_secs(20));

        let mut rings = self::rings(2);
        drop(rings.pop());
        let lost = rings[0].gather(vec![1, 2, 3], soon());
        let lost = lost.expect_err("nobody is there");
        assert!(lost.error.kind() != ErrorKind::TimedOut, "{lost:?}");
    }

    #[test]
    fn parts_cover_all_values_once() {
        for values in [0, 1, 7, 64] {
            for count in [1, 2, 3, 8] {
                let all = (0..count).flat_map(|index| part(values, index, count));
                assert!(all.eq(0..values), "{values} in {count}");
            }
        }
    }
}
