//! What Python prints: str(), repr() and json.dumps() of template values, and
//! what Python calls white space. Prompts contain these texts, so a difference of
//! one character is another prompt.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// str.isspace: Unicode white space and the four information separators.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Appends str(value).
pub fn write_str(out: &mut String, value: &Value) {
    if let Some(text) = value.as_str() {
        out.push_str(text);
    } else if !value.is_undefined() {
        write_repr(out, value);
    }
}

/// Appends repr(value).
pub fn write_repr(out: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN)));
        }
        ValueKind::Seq if value.is_tuple() => {
            out.push('(');
            let n = write_items(out, value);
            out.push_str(if n == 1 { ",)" } else { ")" });
        }
        ValueKind::Seq => {
            out.push('[');
            write_items(out, value);
            out.push(']');
        }
        ValueKind::Map if is_dict(value) => {
            out.push('{');
            for (i, (key, value)) in entries(value).enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &key);
                out.push_str(": ");
                write_repr(out, &value);
            }
            out.push('}');
        }
        // minijinja's Debug of a string is Python's repr of it.
        _ => write!(out, "{value:?}").expect("a String takes everything"),
    }
}

fn write_items(out: &mut String, list: &Value) -> usize {
    let mut n = 0;
    for item in list.try_iter().into_iter().flatten() {
        if n > 0 {
            out.push_str(", ");
        }
        write_repr(out, &item);
        n += 1;
    }
    n
}

/// A map of data, not an object like `loop` that happens to have attributes.
fn is_dict(value: &Value) -> bool {
    value.len().is_some()
}

fn entries(map: &Value) -> impl Iterator<Item = (Value, Value)> + '_ {
    map.try_iter().into_iter().flatten().map(|key| {
        let value = map.get_item(&key).unwrap_or(Value::UNDEFINED);
        (key, value)
    })
}

/// float.__repr__: the shortest digits that read back as the same number, with an
/// exponent below 1e-4 and from 1e16 on.
pub fn float(f: f64) -> String {
    if f.is_nan() {
        return "nan".to_owned();
    }
    if f.is_infinite() {
        return if f > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // Rust switches at the same places and finds the same digits, but writes
    // 1e16 and 1e-5 where Python writes 1e+16 and 1e-05.
    let text = format!("{f:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let exponent: i32 = exponent.parse().expect("Rust wrote it");
            format!("{digits}e{exponent:+03}")
        }
        None => text,
    }
}

/// How json.dumps lays its text out.
pub struct JsonStyle {
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    /// None: all in one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
}

impl JsonStyle {
    /// Appends json.dumps(value).
    pub fn dump(&self, out: &mut String, value: &Value) -> Result<(), Error> {
        self.dump_nested(out, value, 0)
    }

    fn dump_nested(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => {
                write!(out, "{value}").expect("a String takes everything");
            }
            ValueKind::Number => out.push_str(&json_float(value)),
            ValueKind::String => self.dump_text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.dump_container(out, ['[', ']'], items, depth)?;
            }
            ValueKind::Map if is_dict(value) => {
                let mut items: Vec<_> = entries(value)
                    .map(|(key, value)| Ok((Some(json_key(&key)?), value)))
                    .collect::<Result<_, Error>>()?;
                if self.sort_keys {
                    items.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.dump_container(out, ['{', '}'], items, depth)?;
            }
            _ => match value.downcast_object_ref::<crate::value::BigInteger>() {
                Some(integer) => out.push_str(&integer.0),
                None => return Err(not_serializable(value)),
            },
        }
        Ok(())
    }

    fn dump_container(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: Vec<(Option<String>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        out.push(open);
        let empty = items.is_empty();
        for (i, (key, item)) in items.into_iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(out, depth + 1);
            if let Some(key) = key {
                self.dump_text(out, &key);
                out.push_str(&self.key_separator);
            }
            self.dump_nested(out, &item, depth + 1)?;
        }
        if !empty {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn dump_text(&self, out: &mut String, text: &str) {
        out.push('"');
        let mut plain = 0;
        for (at, c) in text.char_indices() {
            let escape = match c {
                '"' => "\\\"",
                '\\' => "\\\\",
                '\n' => "\\n",
                '\r' => "\\r",
                '\t' => "\\t",
                '\x08' => "\\b",
                '\x0c' => "\\f",
                '\0'..='\x1f' => "",
                _ if self.ensure_ascii && !(' '..='~').contains(&c) => "",
                _ => continue,
            };
            out.push_str(&text[plain..at]);
            plain = at + c.len_utf8();
            if escape.is_empty() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("a String takes everything");
                }
            } else {
                out.push_str(escape);
            }
        }
        out.push_str(&text[plain..]);
        out.push('"');
    }
}

fn json_float(value: &Value) -> String {
    let f = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    if f.is_nan() {
        "NaN".to_owned()
    } else if f.is_infinite() {
        if f > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        float(f)
    }
}

fn json_key(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::Number if key.is_integer() => key.to_string(),
        ValueKind::Number => json_float(key),
        _ => return Err(not_serializable(key)),
    })
}

fn not_serializable(value: &Value) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("Object of type {} is not JSON serializable", value.kind()),
    )
}
