//! Tokenizers and chat templates behind a C ABI: text in, token ids out. The
//! functions are declared and described in `firsttoken_native.h`. Nothing here
//! opens a file or a socket.

mod content;
mod guard;
mod python;
mod template;
mod tokenizer;
mod value;

use std::mem::ManuallyDrop;
use std::ptr;
use std::slice;

use guard::{Failure, guard};
use template::ChatTemplate;
use tokenizer::{Engine, Tokenizer};

const OK: i32 = 0;
const ERROR: i32 = 1;
const REFUSED: i32 = 2;

/// A vector whose memory belongs to the caller of the ABI until it is given back.
#[repr(C)]
pub struct Lent<T> {
    data: *mut T,
    len: usize,
    capacity: usize,
}

impl<T> From<Vec<T>> for Lent<T> {
    fn from(vec: Vec<T>) -> Self {
        let mut vec = ManuallyDrop::new(vec);
        Lent { data: vec.as_mut_ptr(), len: vec.len(), capacity: vec.capacity() }
    }
}

impl<T> Lent<T> {
    /// # Safety
    /// `self` must come from `From<Vec<T>>` or be all zero, and be given back once.
    unsafe fn give_back(self) {
        if !self.data.is_null() {
            drop(unsafe { Vec::from_raw_parts(self.data, self.len, self.capacity) });
        }
    }
}

/// # Safety
/// `data` must point at `len` readable values that nobody changes during `'a`,
/// or `len` must be 0.
unsafe fn view<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if len == 0 { &[] } else { unsafe { slice::from_raw_parts(data, len) } }
}

fn utf8(bytes: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(bytes).map_err(|e| Failure::Error(format!("the text is not UTF-8: {e}")))
}

/// Writes the failure to `text` and returns its status.
///
/// # Safety
/// `text` must be writable.
unsafe fn fail(failure: Failure, text: *mut Lent<u8>) -> i32 {
    let (status, message) = match failure {
        Failure::Error(message) => (ERROR, message),
        Failure::Refused(message) => (REFUSED, message),
    };
    unsafe { text.write(message.into_bytes().into()) };
    status
}

/// # Safety
/// As the header says: the inputs readable, the outputs writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_tokenizer_load(
    json: *const u8,
    json_len: usize,
    config: *const u8,
    config_len: usize,
    engine: i32,
    cache_bytes: usize,
    tokenizer: *mut *mut Tokenizer,
    vocab_size: *mut usize,
    error: *mut Lent<u8>,
) -> i32 {
    let loaded = guard(|| {
        let engine = match engine {
            0 => Engine::Fastokens,
            1 => Engine::Tokenizers,
            other => return Err(Failure::Error(format!("no engine has the number {other}"))),
        };
        let (json, config) = unsafe { (view(json, json_len), view(config, config_len)) };
        Tokenizer::load(json, config, engine, cache_bytes)
    });
    match loaded {
        Ok(loaded) => unsafe {
            vocab_size.write(loaded.vocab_size());
            tokenizer.write(Box::into_raw(Box::new(loaded)));
            OK
        },
        Err(failure) => unsafe { fail(failure, error) },
    }
}

/// # Safety
/// As the header says; `tokenizer` must be alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_tokenizer_encode(
    tokenizer: *const Tokenizer,
    text: *const u8,
    len: usize,
    add_special: bool,
    ids: *mut Lent<u32>,
    error: *mut Lent<u8>,
) -> i32 {
    let encoded = guard(|| {
        let (tokenizer, text) = unsafe { (&*tokenizer, view(text, len)) };
        tokenizer.encode(utf8(text)?, add_special)
    });
    match encoded {
        Ok(encoded) => unsafe {
            ids.write(encoded.into());
            OK
        },
        Err(failure) => unsafe { fail(failure, error) },
    }
}

/// # Safety
/// As the header says; `tokenizer` must be alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const u32,
    len: usize,
    text: *mut Lent<u8>,
) -> i32 {
    let decoded = guard(|| {
        let (tokenizer, ids) = unsafe { (&*tokenizer, view(ids, len)) };
        tokenizer.decode(ids)
    });
    unsafe { answer(decoded, text) }
}

/// # Safety
/// As the header says; `tokenizer` must be alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_tokenizer_token_id(
    tokenizer: *const Tokenizer,
    token: *const u8,
    len: usize,
) -> i64 {
    let found = guard(|| {
        let (tokenizer, token) = unsafe { (&*tokenizer, view(token, len)) };
        Ok(tokenizer.token_id(utf8(token)?))
    });
    match found {
        Ok(Some(id)) => i64::from(id),
        _ => -1,
    }
}

/// What the segment cache did and holds; as `ft_cache_stats` in the header.
#[repr(C)]
pub struct CacheStats {
    hits: u64,
    misses: u64,
    hit_bytes: u64,
    miss_bytes: u64,
    bytes: u64,
}

/// # Safety
/// As the header says; `tokenizer` must be alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_tokenizer_cache(tokenizer: *const Tokenizer, stats: *mut CacheStats) -> bool {
    let read = guard(|| {
        let tokenizer = unsafe { &*tokenizer };
        Ok(tokenizer.cache_stats())
    });
    let Ok(Some(read)) = read else {
        return false;
    };
    let read = CacheStats {
        hits: read.hits,
        misses: read.misses,
        hit_bytes: read.hit_bytes,
        miss_bytes: read.miss_bytes,
        bytes: read.bytes as u64,
    };
    unsafe { stats.write(read) };
    true
}

/// # Safety
/// `tokenizer` must come from `ft_tokenizer_load` and not be used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_tokenizer_free(tokenizer: *mut Tokenizer) {
    let _ = guard(|| {
        drop(unsafe { Box::from_raw(tokenizer) });
        Ok(())
    });
}

/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_template_compile(
    source: *const u8,
    len: usize,
    template: *mut *mut ChatTemplate,
    description: *mut Lent<u8>,
) -> i32 {
    unsafe { template.write(ptr::null_mut()) };
    let compiled = guard(|| {
        let source = unsafe { view(source, len) };
        ChatTemplate::compile(utf8(source)?)
    });
    let described = compiled.map(|compiled| {
        let text = compiled.description();
        unsafe { template.write(Box::into_raw(Box::new(compiled))) };
        text
    });
    unsafe { answer(described, description) }
}

/// # Safety
/// As the header says; `template` must be alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_template_render(
    template: *const ChatTemplate,
    variables: *const u8,
    len: usize,
    local_seconds: i64,
    nanoseconds: u32,
    text: *mut Lent<u8>,
) -> i32 {
    let rendered = guard(|| {
        let (template, variables) = unsafe { (&*template, view(variables, len)) };
        template.render(variables, local_seconds, nanoseconds)
    });
    unsafe { answer(rendered, text) }
}

/// # Safety
/// `template` must come from `ft_template_compile` and not be used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_template_free(template: *mut ChatTemplate) {
    let _ = guard(|| {
        drop(unsafe { Box::from_raw(template) });
        Ok(())
    });
}

/// # Safety
/// `text` must come from this library and not be used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_text_free(text: Lent<u8>) {
    unsafe { text.give_back() }
}

/// # Safety
/// `ids` must come from this library and not be used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ft_ids_free(ids: Lent<u32>) {
    unsafe { ids.give_back() }
}

/// Writes the result, or the failure, to `text` and returns the status.
///
/// # Safety
/// `text` must be writable.
unsafe fn answer(result: Result<impl Into<Vec<u8>>, Failure>, text: *mut Lent<u8>) -> i32 {
    match result {
        Ok(result) => unsafe {
            text.write(result.into().into());
            OK
        },
        Err(failure) => unsafe { fail(failure, text) },
    }
}
