//! The door to the readers of other crates (picture decoders, the `tokenizers` crate): a panic of
//! theirs becomes an error of ours.
//!
//! Some of them panic at damaged files. One bad picture or tokenizer must neither end a training
//! nor print a panic's message beside our own error.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// How many calls of [`guarded`] this thread is inside of.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Counts a call of [`guarded`], also where it ends by a panic.
struct Inside;

impl Inside {
    fn enter() -> Self {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}

/// Runs the reader of another crate on this thread; what `work` holds is dropped if it panics.
/// The panic hook of the program is not called for such a panic, so nothing is printed.
///
/// # Errors
/// What the panic said, for the caller to name the file and say what to do.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    quiet_inside();
    let _inside = Inside::enter();
    // What `work` was changing is out of reach after a panic: it is the caller's only through T.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        format!(
            "its reader stopped at it ({}); the file is damaged or of an unsupported kind",
            said_by(&*panic)
        )
    })
}

/// Puts a hook before the program's that leaves panics inside [`guarded`] out. Other threads and
/// panics outside reach the program's hook as before.
fn quiet_inside() {
    static ONCE: Once = Once::new();
    // The hook cannot be taken by a thread that is unwinding.
    if std::thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if DEPTH.with(Cell::get) == 0 {
                before(panic);
            }
        }));
    });
}

fn said_by(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_29_a_panic_behind_the_door_is_an_error() {
        let empty: Vec<usize> = Vec::new();
        let index = empty.len() + 3;
        let error = guarded(|| empty[index]).unwrap_err();
        assert!(error.contains("index is 3"), "{error}");
        assert_eq!(guarded(|| 7), Ok(7));
        // One within another: the outer door still stands after the inner one caught.
        let outer = guarded(|| {
            assert!(guarded(|| panic!("inner")).is_err());
            DEPTH.with(Cell::get)
        });
        assert_eq!(outer, Ok(1));
        assert_eq!(DEPTH.with(Cell::get), 0);
    }

    #[test]
    fn fault_29_a_panic_of_a_thread_behind_its_own_door_is_an_error() {
        let thread = std::thread::spawn(|| guarded(|| -> u8 { panic!("of a loader") }));
        let error = thread.join().expect("the thread lives on").unwrap_err();
        assert!(error.contains("of a loader"), "{error}");
    }
}
