//! What an error says of its cause: the programs write an error with all its causes behind it, so that an error which
//! tells its cause in its own words must not name it as its cause as well.

use std::fs;
use std::path::{Path, PathBuf};

/// Each error type of the workspace that would tell its cause twice.
#[test]
fn no_error_tells_its_cause_twice() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above");
    let mut sources = Vec::new();
    for folder in ["apps", "ci", "dpdk-ffi", "pmem", "stack", "tests"] {
        collect(&root.join(folder), &mut sources);
    }
    // This file has wrong ones on purpose.
    sources.retain(|path| *path != root.join("tests/errors.rs"));
    let mut seen = 0;
    for path in sources {
        let text = fs::read_to_string(&path).expect("a source file");
        // Words in comments are no code.
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let text = code.collect::<Vec<_>>().join("\n");
        for error in errors(&text) {
            seen += 1;
            let twice = error.twice();
            assert!(twice.is_none(), "{}: {twice:?} in {}", path.display(), error.declaration);
        }
    }
    assert!(seen > 100, "only {seen} errors were found: does this test still read the sources?");
}

#[test]
fn an_error_that_tells_its_cause_twice_is_found() {
    let twice = |text| errors(text).next().expect("an error").twice();
    assert_eq!(twice(r#"#[error("no room: {source}")] Room { source: io::Error },"#), Some("source".into()));
    assert_eq!(twice(r#"#[error("no ({0})")] Room(#[from] io::Error),"#), Some("0".into()));
    assert_eq!(twice(r#"#[error("no {1:?}")] Room(u8, #[source] io::Error),"#), Some("1".into()));
    assert_eq!(
        twice(r#"#[error("no {}", why.kind())] Room { #[source] why: io::Error },"#),
        Some("why".into())
    );
    assert_eq!(twice(r#"#[error("no room ;)")] Room { source: io::Error },"#), None);
    assert_eq!(twice(r#"#[error("no room: {reason}")] Room { reason: io::Error },"#), None);
    assert_eq!(twice(r#"#[error("no room at {0}")] Room(String, #[source] io::Error),"#), None);
    assert_eq!(twice(r#"#[error(transparent)] Room(#[from] io::Error),"#), None);
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// What thiserror is told of an error, and the variant or structure that it is told of.
struct ErrorText<'a> {
    message: &'a str,
    declaration: &'a str,
}

fn errors(text: &str) -> impl Iterator<Item = ErrorText<'_>> {
    const ATTRIBUTE: &str = "#[error(";
    text.match_indices(ATTRIBUTE).filter_map(|(at, _)| {
        let message = until(&text[at + ATTRIBUTE.len()..], &[')']);
        let behind = text[at + ATTRIBUTE.len() + message.len()..].strip_prefix(")]")?;
        Some(ErrorText { message, declaration: until(behind, &[',', ';', '}']) })
    })
}

/// The text up to one of `ends` that lies in no bracket and no string.
fn until<'a>(text: &'a str, ends: &[char]) -> &'a str {
    let (mut depth, mut in_string, mut is_escaped) = (0, false, false);
    for (at, char) in text.char_indices() {
        match char {
            _ if is_escaped => is_escaped = false,
            '\\' if in_string => is_escaped = true,
            '"' => in_string = !in_string,
            _ if in_string => {}
            _ if depth == 0 && ends.contains(&char) => return &text[..at],
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    text
}

impl ErrorText<'_> {
    /// The field that is both told and named as the cause.
    fn twice(&self) -> Option<String> {
        let is_word = |char: char| char.is_alphanumeric() || char == '_';
        // Behind the text come its arguments.
        let text = until(self.message, &[',']);
        let mut arguments = self.message[text.len()..].split(|char| !is_word(char));
        let in_text =
            |cause: &str| [":", "}", "."].iter().any(|end| text.contains(&format!("{{{cause}{end}")));
        self.cause().filter(|cause| in_text(cause) || arguments.any(|word| word == cause))
    }

    /// The field that thiserror takes for the cause.
    fn cause(&self) -> Option<String> {
        let fields = self.declaration.find(['(', '{'])?;
        let is_tuple = self.declaration[fields..].starts_with('(');
        let mut rest = &self.declaration[fields + 1..];
        for number in 0.. {
            let field = until(rest, &[',', ')', '}']);
            let name =
                field.rsplit(']').next().and_then(|field| field.split(':').next()).unwrap_or("").trim();
            if field.contains("#[source]") || field.contains("#[from]") || (!is_tuple && name == "source") {
                return Some(if is_tuple { number.to_string() } else { name.to_owned() });
            }
            rest = rest.get(field.len() + 1..)?;
        }
        None
    }
}
