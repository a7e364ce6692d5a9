//! Whether a template takes a message's content as a string or as a list of parts,
//! by the rule with which vLLM answers `--chat-template-content-format auto`: does
//! a loop go over the content of a message? The rule knows no scopes: a name that
//! is assigned `messages` anywhere is messages everywhere.

use std::collections::VecDeque;

use minijinja::machinery::ast::{Expr, ForLoop, Set, Stmt};

pub const STRING: &str = "string";
pub const OPENAI: &str = "openai";

/// A target such as `a, b` or `ns.x` where the rule needs a plain name; it then
/// gives up, and the answer is "string".
struct NotAName;

pub fn content_format(template: &Stmt<'_>) -> &'static str {
    let mut nodes = Nodes::default();
    nodes.collect(template);
    match nodes.loops_over_content() {
        Ok(true) => OPENAI,
        Ok(false) | Err(NotAName) => STRING,
    }
}

/// The statements that matter, in the order of the source.
#[derive(Default)]
struct Nodes<'t, 's> {
    loops: Vec<&'t ForLoop<'s>>,
    assignments: Vec<&'t Set<'s>>,
}

impl<'t, 's> Nodes<'t, 's> {
    fn loops_over_content(&self) -> Result<bool, NotAName> {
        let messages = self.names_of_messages()?;
        let mut message_names = Vec::new();
        for each in &self.loops {
            if messages.iter().any(|name| is_variable_or_elements(&each.iter, name, None)) {
                message_names.push(name(&each.target)?);
            }
        }
        for each in &self.loops {
            let over_content =
                message_names.iter().any(|name| is_variable_or_elements(&each.iter, name, Some("content")));
            // A macro's parameter, as in render_content(content) of newer templates.
            if over_content || is_variable(&each.iter, "content") {
                name(&each.target)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `messages` and every name that is assigned from it, or from such a name.
    fn names_of_messages(&self) -> Result<Vec<&'s str>, NotAName> {
        let mut names = vec!["messages"];
        let mut queue = VecDeque::from(["messages"]);
        while let Some(source) = queue.pop_front() {
            for each in &self.assignments {
                if is_variable_or_elements(&each.expr, source, None) {
                    let target = name(&each.target)?;
                    if !names.contains(&target) {
                        names.push(target);
                        queue.push_back(target);
                    }
                }
            }
        }
        Ok(names)
    }

    fn collect_all(&mut self, body: &'t [Stmt<'s>]) {
        for stmt in body {
            self.collect(stmt);
        }
    }

    fn collect(&mut self, stmt: &'t Stmt<'s>) {
        match stmt {
            Stmt::Template(s) => self.collect_all(&s.children),
            Stmt::ForLoop(s) => {
                self.loops.push(s);
                self.collect_all(&s.body);
                self.collect_all(&s.else_body);
            }
            Stmt::IfCond(s) => {
                self.collect_all(&s.true_body);
                self.collect_all(&s.false_body);
            }
            Stmt::Set(s) => self.assignments.push(s),
            Stmt::WithBlock(s) => self.collect_all(&s.body),
            Stmt::SetBlock(s) => self.collect_all(&s.body),
            Stmt::AutoEscape(s) => self.collect_all(&s.body),
            Stmt::FilterBlock(s) => self.collect_all(&s.body),
            Stmt::Block(s) => self.collect_all(&s.body),
            Stmt::Macro(s) => self.collect_all(&s.body),
            Stmt::CallBlock(s) => self.collect_all(&s.macro_decl.body),
            _ => {}
        }
    }
}

fn name<'s>(target: &Expr<'s>) -> Result<&'s str, NotAName> {
    match target {
        Expr::Var(var) => Ok(var.id),
        _ => Err(NotAName),
    }
}

fn is_variable(expr: &Expr<'_>, name: &str) -> bool {
    matches!(expr, Expr::Var(var) if var.id == name)
}

fn is_attribute(expr: &Expr<'_>, name: &str, key: &str) -> bool {
    match expr {
        Expr::GetItem(item) => {
            is_variable(&item.expr, name)
                && matches!(&item.subscript_expr, Expr::Const(c) if c.value.as_str() == Some(key))
        }
        Expr::GetAttr(attr) => is_variable(&attr.expr, name) && attr.name == key,
        _ => false,
    }
}

/// `name`, or with a key `name.key`, through any filters, tests and slices.
fn is_variable_or_elements(expr: &Expr<'_>, name: &str, key: Option<&str>) -> bool {
    match (expr, key) {
        (Expr::Filter(filter), _) => {
            filter.expr.as_ref().is_some_and(|e| is_variable_or_elements(e, name, key))
        }
        (Expr::Test(test), _) => is_variable_or_elements(&test.expr, name, key),
        (Expr::Slice(slice), _) => is_variable_or_elements(&slice.expr, name, key),
        (_, Some(key)) => is_attribute(expr, name, key),
        (_, None) => is_variable(expr, name),
    }
}
