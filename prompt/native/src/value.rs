//! Template variables from their binary form; the format is described in value.go.

use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Object, ObjectRepr};

use crate::guard::Failure;

/// Lists and maps may be nested this deep. Python's JSON reader gives up at about
/// a thousand, pydantic at 200; the recursion here and in the templates has room.
const MAX_DEPTH: usize = 255;

/// An integer that 128 bits do not hold, kept as its digits.
#[derive(Debug)]
pub struct BigInteger(pub String);

impl Object for BigInteger {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads exactly one value, which must be a map.
pub fn read_variables(bytes: &[u8]) -> Result<Value, Failure> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.bytes.first() != Some(&b'{') {
        return Err(reader.fault("the variables are not a map"));
    }
    let tag = reader.byte()?;
    let value = reader.value(tag, 0)?;
    if reader.at != bytes.len() {
        return Err(reader.fault("more bytes after the variables"));
    }
    Ok(value)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn fault(&self, what: &str) -> Failure {
        Failure::Error(format!("malformed variables: {what} at byte {} of {}", self.at, self.bytes.len()))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Failure> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.fault("cut short"));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Failure> {
        Ok(self.take(1)?[0])
    }

    fn eight(&mut self) -> Result<[u8; 8], Failure> {
        Ok(self.take(8)?.try_into().expect("took eight"))
    }

    fn text(&mut self) -> Result<&'a str, Failure> {
        let len = u32::from_le_bytes(self.take(4)?.try_into().expect("took four"));
        let bytes = self.take(len as usize)?;
        std::str::from_utf8(bytes).map_err(|_| self.fault("a string that is not UTF-8 ends"))
    }

    fn value(&mut self, tag: u8, depth: usize) -> Result<Value, Failure> {
        if depth > MAX_DEPTH {
            return Err(self.fault("nested too deep"));
        }
        Ok(match tag {
            b'n' => Value::from(()),
            b't' => Value::from(true),
            b'f' => Value::from(false),
            b'i' => Value::from(i64::from_le_bytes(self.eight()?)),
            b'd' => Value::from(f64::from_le_bytes(self.eight()?)),
            b'b' => self.big_integer()?,
            b's' => Value::from(self.text()?),
            b'[' => {
                let mut items = Vec::new();
                loop {
                    match self.byte()? {
                        b']' => break Value::from(items),
                        tag => items.push(self.value(tag, depth + 1)?),
                    }
                }
            }
            b'{' => {
                let mut pairs = Vec::new();
                loop {
                    match self.byte()? {
                        b'}' => break Value::from_pairs(pairs),
                        b'k' => {
                            let key = self.text()?;
                            let tag = self.byte()?;
                            pairs.push((key, self.value(tag, depth + 1)?));
                        }
                        _ => return Err(self.fault("no key where one is due")),
                    }
                }
            }
            _ => return Err(self.fault("unknown tag")),
        })
    }

    fn big_integer(&mut self) -> Result<Value, Failure> {
        let digits = self.text()?;
        let bare = digits.strip_prefix('-').unwrap_or(digits);
        if bare.is_empty() || !bare.bytes().all(|b| b.is_ascii_digit()) {
            return Err(self.fault("an integer that is not decimal ends"));
        }
        Ok(match digits.parse::<i128>() {
            Ok(n) => Value::from(n),
            Err(_) => Value::from_object(BigInteger(digits.to_owned())),
        })
    }
}
