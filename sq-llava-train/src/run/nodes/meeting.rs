//! How the nodes of a run find one another: each tells the orchestrator its rank and where it can
//! be reached, and once all are there each is told where the others are.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::NodeConfig;
use super::ring::{Ring, read_exact, write_all};
use crate::error::TrainError;
use crate::run::stop::StopSignal;

/// Nodes of other versions might take steps that are not the same.
const VERSION: &str = concat!("sq-llava ", env!("CARGO_PKG_VERSION"));
/// Longest message of a meeting, in bytes.
const LONGEST: u32 = 1 << 16;
/// How long a connection may take to say what it is.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// How long to wait before something is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// What a node says to the orchestrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Hello {
    version: String,
    nodes: usize,
    rank: usize,
    /// Where the node before it in the ring finds it.
    address: String,
}

/// What the orchestrator says to each node, or why there is no run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Welcome {
    /// Tells this meeting's nodes from all others.
    session: u64,
    /// Where the nodes are, by rank.
    addresses: Vec<String>,
}

fn send<T: Serialize>(stream: &TcpStream, message: &T, deadline: Instant) -> std::io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    write_all(
        stream,
        &[&length.to_le_bytes(), &text[..]].concat(),
        deadline,
    )
}

fn receive<T: DeserializeOwned>(stream: &TcpStream, deadline: Instant) -> std::io::Result<T> {
    let mut length = [0; 4];
    read_exact(stream, &mut length, deadline)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length as usize];
    read_exact(stream, &mut text, deadline)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Brings the nodes of runs together. It takes no part in the training: once the nodes of a run
/// have met, it may end, or bring the next run's together.
#[derive(Debug)]
pub struct Orchestrator {
    listener: TcpListener,
}

impl Orchestrator {
    /// Listens at `HOST:PORT`, or at a port of all addresses of this machine. 0 is any free port.
    ///
    /// # Errors
    /// If it is not an address, or cannot be used.
    pub fn bind(listen: &str) -> Result<Self, TrainError> {
        let fail = |reason: String| TrainError::NodeMeeting(format!("{listen}: {reason}"));
        let bound = match listen.parse::<u16>() {
            Ok(port) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
            Err(_) => {
                port_of(listen).map_err(fail)?;
                TcpListener::bind(listen)
            }
        };
        let listener = bound.map_err(|e| fail(format!("cannot listen there: {e}")))?;
        Ok(Self { listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn address(&self) -> Result<SocketAddr, TrainError> {
        self.listener.local_addr().map_err(unusable)
    }

    /// Brings nodes together until it is told to stop.
    ///
    /// # Errors
    /// If the system takes the port away.
    pub fn run(&self, stop: &StopSignal) -> Result<(), TrainError> {
        self.listener.set_nonblocking(true).map_err(unusable)?;
        let (sender, arrivals) = channel();
        let mut meeting = Meeting::default();
        while !stop.is_set() {
            match self.listener.accept() {
                Ok((stream, _)) => introduce(stream, sender.clone()),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(unusable(error)),
            }
            match arrivals.recv_timeout(PAUSE) {
                Ok((hello, stream)) => meeting.add(hello, stream),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
        Ok(())
    }
}

fn unusable(error: Error) -> TrainError {
    TrainError::NodeMeeting(format!("the orchestrator's port cannot be used: {error}"))
}

/// Whether another try may succeed: no connection came, or it was closed again.
fn is_passing(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock
            | ErrorKind::Interrupted
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
    )
}

/// Reads who a connection is from on a thread of its own: one that says nothing delays no other.
fn introduce(stream: TcpStream, arrivals: Sender<(Hello, TcpStream)>) {
    let started = std::thread::Builder::new().spawn(move || {
        let deadline = Instant::now() + INTRODUCTION;
        let ready = stream.set_nonblocking(false);
        match ready.and_then(|()| receive::<Hello>(&stream, deadline)) {
            // Without a receiver the orchestrator has ended.
            Ok(hello) => drop(arrivals.send((hello, stream))),
            Err(error) => tracing::warn!("somebody who is no node of a run: {error}"),
        }
    });
    started.map_or_else(|e| tracing::warn!("no thread for a connection: {e}"), drop);
}

/// The nodes that wait, by rank.
#[derive(Default)]
struct Meeting {
    here: BTreeMap<usize, (Hello, TcpStream)>,
}

impl Meeting {
    fn add(&mut self, hello: Hello, stream: TcpStream) {
        self.here.retain(|rank, (_, stream)| {
            let alive = is_alive(stream);
            if !alive {
                tracing::info!("rank {rank} has gone again");
            }
            alive
        });
        let (nodes, rank) = (hello.nodes, hello.rank);
        tracing::info!("rank {rank} of {nodes} is here, at {}", hello.address);
        if let Some(reason) = self.objection(&hello) {
            tracing::warn!("{reason}");
            self.here.insert(usize::MAX, (hello, stream));
            self.end(&Err(reason));
            return;
        }
        self.here.insert(rank, (hello, stream));
        if self.here.len() == nodes {
            let welcome = Welcome {
                session: RandomState::new().build_hasher().finish(),
                addresses: self.here.values().map(|(h, _)| h.address.clone()).collect(),
            };
            self.end(&Ok(welcome));
            tracing::info!("all {nodes} nodes have met");
        }
    }

    /// Why there is no run with another node, if so.
    fn objection(&self, new: &Hello) -> Option<String> {
        if new.version != VERSION {
            return Some(format!(
                "rank {} is {}, the orchestrator is {VERSION}: all need the same version",
                new.rank, new.version
            ));
        }
        if new.rank >= new.nodes {
            return Some(format!("there is no rank {} of {}", new.rank, new.nodes));
        }
        let (rank, (other, _)) = self.here.iter().next()?;
        if other.nodes != new.nodes {
            return Some(format!(
                "rank {rank} was started with --nodes {}, rank {} with --nodes {}",
                other.nodes, new.rank, new.nodes
            ));
        }
        let (same, _) = self.here.get(&new.rank)?;
        Some(format!(
            "two nodes were started with --node-rank {}: {} and {}",
            new.rank, same.address, new.address
        ))
    }

    /// Answers all who wait.
    fn end(&mut self, answer: &Result<Welcome, String>) {
        let deadline = Instant::now() + INTRODUCTION;
        for (hello, stream) in std::mem::take(&mut self.here).into_values() {
            if let Err(error) = send(&stream, answer, deadline) {
                tracing::warn!("rank {} was not to be reached: {error}", hello.rank);
            }
        }
    }
}

/// Whether the other side still holds the connection.
fn is_alive(stream: &TcpStream) -> bool {
    let peek = || {
        stream.set_nonblocking(true)?;
        let read = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        read
    };
    match peek() {
        Ok(read) => read > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// The port of `HOST:PORT`.
pub(super) fn port_of(address: &str) -> Result<u16, String> {
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty());
    port.and_then(|(_, port)| port.parse().ok())
        .ok_or_else(|| format!("{address} is not HOST:PORT"))
}

/// Connects to an address, again and again until the deadline.
fn connect(address: &str, deadline: Instant) -> Result<TcpStream, Error> {
    loop {
        let attempt = || {
            let mut last = Error::from(ErrorKind::AddrNotAvailable);
            for address in address.to_socket_addrs()? {
                let left = deadline.saturating_duration_since(Instant::now());
                let left = left.clamp(PAUSE, INTRODUCTION);
                match TcpStream::connect_timeout(&address, left) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        match attempt() {
            Err(error) if Instant::now() + PAUSE > deadline => return Err(error),
            Err(_) => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
}

/// Meets the other nodes and makes the ring with them.
pub(super) fn join(config: &NodeConfig) -> Result<Ring, TrainError> {
    let deadline = Instant::now() + config.timeout;
    let seconds = config.timeout.as_secs();
    let fail = |reason: String| TrainError::NodeMeeting(reason);
    let coordinator = &config.coordinator;
    let stream = connect(coordinator, deadline).map_err(|e| {
        fail(format!(
            "no orchestrator at {coordinator} within {seconds} s ({e}); start it there with: \
             sq-llava orchestrator --listen PORT"
        ))
    })?;
    let (listener, address) = listen(config, &stream)
        .map_err(|e| fail(format!("this node cannot listen for the others: {e}")))?;
    let hello = Hello {
        version: VERSION.to_owned(),
        nodes: config.nodes,
        rank: config.rank,
        address,
    };
    let answer = send(&stream, &hello, deadline)
        .and_then(|()| receive::<Result<Welcome, String>>(&stream, deadline));
    let welcome = answer
        .map_err(|error| match error.kind() {
            ErrorKind::TimedOut => fail(format!(
                "not all {} nodes came to {coordinator} within {seconds} s",
                config.nodes
            )),
            _ => fail(format!("the orchestrator at {coordinator} left: {error}")),
        })?
        .map_err(fail)?;
    let next = (config.rank + 1) % config.nodes;
    let Some(address) = welcome.addresses.get(next) else {
        return Err(fail(format!(
            "the orchestrator at {coordinator} knows no rank {next}"
        )));
    };
    let unreached = |e: Error| {
        fail(format!(
            "rank {next} is not to be reached at {address} ({e}); give it --node-address with an \
             address that the other nodes reach"
        ))
    };
    let to_next = connect(address, deadline).map_err(unreached)?;
    let badge = badge(welcome.session, config.rank);
    write_all(&to_next, &badge, deadline).map_err(unreached)?;
    let previous = (config.rank + config.nodes - 1) % config.nodes;
    let expected = self::badge(welcome.session, previous);
    let from_previous = accept(&listener, &expected, deadline).map_err(|e| {
        fail(format!(
            "rank {previous} did not reach this node within {seconds} s ({e}); give \
             --node-address with an address that the other nodes reach"
        ))
    })?;
    Ring::new(config.rank, config.nodes, to_next, from_previous)
        .map_err(|e| fail(format!("the connections cannot be used: {e}")))
}

/// A port for the node before this one, and the address that it gets to know.
fn listen(config: &NodeConfig, coordinator: &TcpStream) -> std::io::Result<(TcpListener, String)> {
    let own = coordinator.local_addr()?.ip();
    let Some(address) = &config.address else {
        let listener = TcpListener::bind((own, 0))?;
        let address = listener.local_addr()?.to_string();
        return Ok((listener, address));
    };
    let port = port_of(address).map_err(Error::other)?;
    // The address may be a router's, so the port is taken on all addresses of this machine.
    let any: IpAddr = match own {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Ok((TcpListener::bind((any, port))?, address.clone()))
}

/// What a node says first on a connection of the ring.
fn badge(session: u64, rank: usize) -> [u8; 16] {
    ((u128::from(session) << 64) | rank as u128).to_le_bytes()
}

/// Waits for the node that has this badge; others are sent away.
fn accept(
    listener: &TcpListener,
    expected: &[u8; 16],
    deadline: Instant,
) -> std::io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    while Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                let mut badge = [0; 16];
                let soon = deadline.min(Instant::now() + INTRODUCTION);
                if read_exact(&stream, &mut badge, soon).is_ok() && badge == *expected {
                    return Ok(stream);
                }
            }
            Err(error) if is_passing(&error) => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An orchestrator in a thread; it ends with its last handle.
    struct Running {
        address: String,
        stop: StopSignal,
    }

    impl Running {
        fn start() -> Self {
            let orchestrator = Orchestrator::bind("127.0.0.1:0").expect("a port");
            let address = orchestrator.address().expect("bound").to_string();
            let stop = StopSignal::new();
            let signal = stop.clone();
            std::thread::spawn(move || orchestrator.run(&signal).expect("runs"));
            Self { address, stop }
        }

        fn config(&self, nodes: usize, rank: usize) -> NodeConfig {
            NodeConfig {
                nodes,
                rank,
                coordinator: self.address.clone(),
                address: None,
                timeout: Duration::from_secs(20),
            }
        }

        /// Lets nodes join at once; what comes of it, by their places in the list.
        fn join(&self, configs: &[NodeConfig]) -> Vec<Result<Ring, String>> {
            std::thread::scope(|scope| {
                let threads: Vec<_> = configs
                    .iter()
                    .map(|config| scope.spawn(|| join(config).map_err(|e| e.to_string())))
                    .collect();
                let joined = threads.into_iter().map(|t| t.join().expect("no panic"));
                joined.collect()
            })
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.stop();
        }
    }

    #[test]
    fn nodes_meet_again_and_again() {
        let running = Running::start();
        for nodes in [2, 3] {
            let configs: Vec<NodeConfig> = (0..nodes).map(|r| running.config(nodes, r)).collect();
            let rings: Vec<Ring> = running
                .join(&configs)
                .into_iter()
                .map(|ring| ring.expect("a ring"))
                .collect();
            let soon = Instant::now() + Duration::from_secs(20);
            std::thread::scope(|scope| {
                for (rank, mut ring) in rings.into_iter().enumerate() {
                    scope.spawn(move || {
                        let all = ring.gather(vec![rank as u8], soon).expect("messages");
                        assert!(all.into_iter().eq((0..nodes).map(|r| vec![r as u8])));
                    });
                }
            });
        }
    }

    #[test]
    fn nodes_that_do_not_fit_are_told_why() {
        let running = Running::start();
        let cases = [
            ([running.config(2, 0), running.config(3, 1)], "--nodes 3"),
            (
                [running.config(3, 1), running.config(3, 1)],
                "two nodes were started with --node-rank 1",
            ),
        ];
        for (configs, part) in cases {
            for answer in running.join(&configs) {
                let error = answer.expect_err("no ring");
                assert!(error.contains(part), "{error}");
            }
        }
    }

    #[test]
    fn who_does_not_come_is_not_waited_for_for_ever() {
        let running = Running::start();
        let config = NodeConfig {
            timeout: Duration::from_secs(1),
            ..running.config(2, 0)
        };
        let error = join(&config).expect_err("alone").to_string();
        assert!(error.contains("not all 2 nodes came"), "{error}");
        // It has gone, so it delays no other.
        let configs = [running.config(2, 0), running.config(2, 1)];
        assert!(running.join(&configs).iter().all(Result::is_ok));

        let nobody = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let config = NodeConfig {
            coordinator: nobody.expect("a port").to_string(),
            ..config
        };
        let error = join(&config).expect_err("no orchestrator").to_string();
        assert!(error.contains("no orchestrator at 127.0.0.1"), "{error}");
        assert!(error.contains("within 1 s"), "{error}");
    }

    #[test]
    fn strangers_do_no_harm() {
        let running = Running::start();
        let stranger = TcpStream::connect(&running.address).expect("connects");
        let soon = Instant::now() + INTRODUCTION;
        write_all(&stranger, b"GET / HTTP/1.1\r\n\r\n", soon).expect("sent");
        let configs = [running.config(2, 0), running.config(2, 1)];
        assert!(running.join(&configs).iter().all(Result::is_ok));
        for wrong in ["", "host", ":80", "host:port", "host:70000"] {
            assert!(port_of(wrong).is_err(), "{wrong}");
        }
        assert_eq!(port_of("[::1]:80"), Ok(80));
        assert!(Orchestrator::bind("nowhere").is_err());
    }
}
