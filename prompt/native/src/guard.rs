//! The wall between Rust panics and C: unwinding into a foreign frame would end
//! the process, and with it every request.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

/// Why a call failed.
#[derive(Debug, PartialEq)]
pub enum Failure {
    /// A fault of the input, of a file, or of this library.
    Error(String),
    /// The template called raise_exception with this text.
    Refused(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Error(error.to_string())
    }
}

thread_local! {
    /// Where this thread panicked last; taken by `guard`.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `call` and makes an error of its panic, with the place in the source. What
/// the call left half done is behind `&self` of types that are `Sync`, or dropped.
pub fn guard<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    static HOOK: Once = Once::new();
    // The default hook prints to standard error, which belongs to the host's log.
    HOOK.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string);
            let _ = PLACE.try_with(|cell| cell.replace(place));
        }));
    });
    panic::catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        let place = PLACE.with_borrow_mut(Option::take);
        Err(Failure::Error(format!(
            "the native library panicked at {}: {}",
            place.as_deref().unwrap_or("an unknown place"),
            text_of(&*payload)
        )))
    })
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "no text"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_names_its_place() {
        let empty: Vec<u32> = Vec::new();
        let Err(Failure::Error(text)) = guard(|| Ok(empty[usize::from(empty.is_empty())])) else {
            panic!("the panic was not caught");
        };
        assert!(text.contains("src/guard.rs:"), "{text}");
        assert!(text.contains("index out of bounds"), "{text}");
    }

    #[test]
    fn the_next_call_is_not_harmed() {
        let _ = guard::<()>(|| panic!("first"));
        assert_eq!(guard(|| Ok(7)), Ok(7));
    }
}
