//! What a reply says: the part of an answer that counts, as each benchmark's own script takes it.

pub mod gqa;
mod normalise;
pub mod science_qa;

pub use normalise::normalise;
