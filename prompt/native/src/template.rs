//! Chat templates in the environment that transformers gives them
//! (`transformers.utils.chat_template_utils`).

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use chrono::{DateTime, NaiveDateTime};
use minijinja::machinery::{Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::content::content_format;
use crate::guard::Failure;
use crate::python::{self, JsonStyle};
use crate::value::read_variables;

const NAME: &str = "chat_template";

pub struct ChatTemplate {
    environment: Environment<'static>,
    content_format: &'static str,
    names: Vec<String>,
}

thread_local! {
    /// What strftime_now prints in the render that runs on this thread.
    static NOW: Cell<NaiveDateTime> = const { Cell::new(DateTime::UNIX_EPOCH.naive_utc()) };
}

impl ChatTemplate {
    pub fn compile(source: &str) -> Result<Self, Failure> {
        let mut environment = environment()?;
        let source = without_generation_tags(source, environment.syntax())?;
        let ast = parse(&source, NAME, environment.syntax().clone())?;
        let content_format = content_format(&ast);
        environment.add_template_owned(NAME, source.to_string())?;
        let names = environment.get_template(NAME)?.undeclared_variables(false);
        Ok(ChatTemplate { environment, content_format, names: names.into_iter().collect() })
    }

    /// The content format and the names of the variables, one a line.
    pub fn description(&self) -> String {
        let mut text = self.content_format.to_owned();
        for name in &self.names {
            text.push('\n');
            text.push_str(name);
        }
        text
    }

    pub fn render(&self, variables: &[u8], local_seconds: i64, nanoseconds: u32) -> Result<Vec<u8>, Failure> {
        // The text is mostly what the variables hold: one allocation, no growing.
        let mut text = Vec::with_capacity(variables.len() + 4096);
        let variables = read_variables(variables)?;
        let now = DateTime::from_timestamp(local_seconds, nanoseconds)
            .ok_or_else(|| Failure::Error(format!("no date at {local_seconds} seconds")))?;
        NOW.set(now.naive_utc());
        let template = self.environment.get_template(NAME)?;
        template.render_captured_to(variables, &mut text).map_err(|error| match raised(&error) {
            Some(message) => Failure::Refused(message.to_owned()),
            None => Failure::Error(error.to_string()),
        })?;
        Ok(text)
    }
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(|out, _, value| {
        if let Some(text) = value.as_str() {
            return out.write_str(text).map_err(Error::from);
        }
        let mut text = String::new();
        python::write_str(&mut text, value);
        out.write_str(&text).map_err(Error::from)
    });
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", tojson);
    env.add_filter("string", string);
    env.add_filter("trim", trim);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    Ok(env)
}

/// `{% generation %}` marks what the assistant wrote, for training; a renderer
/// prints its body. minijinja has no tags of others, so they become a block that
/// is always taken, which strips the same white space.
fn without_generation_tags<'a>(source: &'a str, syntax: &SyntaxConfig) -> Result<Cow<'a, str>, Error> {
    if !source.contains("endgeneration") {
        return Ok(Cow::Borrowed(source));
    }
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    let mut in_front = false;
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token?;
        let replacement = match token {
            Token::Ident("generation") if in_front => Some("if true"),
            Token::Ident("endgeneration") if in_front => Some("endif"),
            _ => None,
        };
        if let Some(replacement) = replacement {
            out.push_str(&source[copied..span.start_offset as usize]);
            out.push_str(replacement);
            copied = span.end_offset as usize;
        }
        in_front = matches!(token, Token::BlockStart);
    }
    out.push_str(&source[copied..]);
    Ok(Cow::Owned(out))
}

/// The methods of Python's str and dict; where Rust and Python disagree on white
/// space, Python's.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), true) = (value.as_str(), args.is_empty()) {
        match name {
            "strip" => return Ok(text.trim_matches(python::is_space).into()),
            "lstrip" => return Ok(text.trim_start_matches(python::is_space).into()),
            "rstrip" => return Ok(text.trim_end_matches(python::is_space).into()),
            "split" => {
                let words = text.split(python::is_space).filter(|word| !word.is_empty());
                return Ok(words.map(Value::from).collect::<Vec<_>>().into());
            }
            _ => {}
        }
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// json.dumps with the defaults of transformers' own tojson.
fn tojson(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(v)?),
        }),
    };
    let separators = kwargs.get::<Option<Value>>("separators")?.filter(|v| !v.is_none());
    let (item_separator, key_separator) = match separators {
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            let (item, key): (String, String) = from_args(&pair)?;
            (item, key)
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item_separator,
        key_separator,
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.dump(&mut out, value)?;
    Ok(out)
}

fn string(value: &Value) -> String {
    let mut out = String::new();
    python::write_str(&mut out, value);
    out
}

fn trim(value: &Value, chars: Option<Cow<'_, str>>) -> String {
    let text = string(value);
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text.trim_matches(python::is_space).to_owned(),
    }
}

/// The template's own refusal; told from other errors by its type.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = string(message);
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

fn raised(error: &Error) -> Option<&str> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message);
        }
        cause = error.source();
    }
    None
}

/// datetime.now().strftime(format). The time has no zone, so %z and %Z are empty.
fn strftime_now(format: &str) -> Result<String, Error> {
    let format = format.replace("%z", "").replace("%Z", "").replace("%f", "%6f");
    let mut out = String::new();
    fmt::write(&mut out, format_args!("{}", NOW.get().format(&format))).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: unknown format {format:?}"))
    })?;
    Ok(out)
}
