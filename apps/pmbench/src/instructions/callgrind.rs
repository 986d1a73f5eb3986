//! What callgrind writes: costs by line of source, under the function whose machine code they are part of.
//!
//! The format is described in valgrind's manual, "Callgrind Format Specification".

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};

/// Where instructions were executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot<'a> {
    /// The program or library.
    pub object: &'a str,
    /// The function, as its symbol says.
    pub function: &'a str,
    /// The file of the source line: for code that was inlined, another one than the function's.
    pub file: &'a str,
}

/// A function that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Callee<'a> {
    /// The program or library.
    pub object: &'a str,
    /// The function, as its symbol says.
    pub function: &'a str,
}

/// Reads a profile of one event, and hands each spot's own cost to `cost` and each call's count to `call`.
pub fn read<'a>(
    text: &'a str,
    mut cost: impl FnMut(Spot<'a>, u64),
    mut call: impl FnMut(Callee<'a>, u64),
) -> Result<()> {
    let (mut objects, mut files, mut functions) = (Names::default(), Names::default(), Names::default());
    let mut at = Spot { object: "", function: "", file: "" };
    // Where a call leads into another object is said before it is said to which function.
    let mut callee = Callee { object: "", function: "" };
    let mut other_object = None;
    let mut is_call = false;
    let mut is_events = false;
    for line in text.lines() {
        if let Some(events) = line.strip_prefix("events:") {
            ensure!(events.trim() == "Ir", "the profile counts {}, not instructions", events.trim());
            is_events = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '*')) {
            // What a call took is part of the callee's own lines.
            if std::mem::take(&mut is_call) {
                continue;
            }
            let own = line.split_ascii_whitespace().nth(1).unwrap_or("0");
            cost(at, own.parse().with_context(|| format!("no cost: {line}"))?);
        } else if let Some((key, value)) = line.split_once('=') {
            match key {
                "ob" => at.object = objects.name(value)?,
                "fl" | "fi" | "fe" => at.file = files.name(value)?,
                "fn" => at.function = functions.name(value)?,
                "cob" => other_object = Some(objects.name(value)?),
                "cfi" | "cfl" => drop(files.name(value)?),
                "cfn" => {
                    let object = other_object.take().unwrap_or(at.object);
                    callee = Callee { object, function: functions.name(value)? };
                }
                "calls" => {
                    let count = value.split_ascii_whitespace().next().unwrap_or_default();
                    call(callee, count.parse().with_context(|| format!("no count: {line}"))?);
                    is_call = true;
                }
                _ => {}
            }
        }
    }
    ensure!(is_events, "callgrind has written no profile");
    Ok(())
}

/// Names that are written out once, `(3) name`, and from then on as `(3)`.
#[derive(Default)]
struct Names<'a>(HashMap<&'a str, &'a str>);

impl<'a> Names<'a> {
    fn name(&mut self, text: &'a str) -> Result<&'a str> {
        let Some((number, name)) = text.strip_prefix('(').and_then(|text| text.split_once(')')) else {
            return Ok(text);
        };
        match name.trim() {
            "" => self.0.get(number).copied().with_context(|| format!("name {number} is never said")),
            name => {
                self.0.insert(number, name);
                Ok(name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = "\
# callgrind format
version: 1
events: Ir

ob=(1) /bin/server
fl=(1) src/main.rs
fn=(1) server::main
10 5
fi=(2) src/inlined.rs
+3 7
fe=(1)
* 2
cob=(2) /lib/libc.so
cfi=(3) memcpy.S
cfn=(2) memcpy
calls=4 1
12 400

ob=(2)
fl=(3)
fn=(2)
1 400
totals: 414
";

    #[test]
    fn costs_are_each_lines_own_and_calls_are_counted() {
        let (mut costs, mut calls) = (Vec::new(), Vec::new());
        read(PROFILE, |spot, own| costs.push((spot, own)), |callee, count| calls.push((callee, count)))
            .expect("a profile");
        let spot = |object, function, file| Spot { object, function, file };
        let main = |file| spot("/bin/server", "server::main", file);
        assert_eq!(
            costs,
            [
                (main("src/main.rs"), 5),
                (main("src/inlined.rs"), 7),
                (main("src/main.rs"), 2),
                (spot("/lib/libc.so", "memcpy", "memcpy.S"), 400),
            ]
        );
        assert_eq!(calls, [(Callee { object: "/lib/libc.so", function: "memcpy" }, 4)]);
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for text in ["", "events: Ir Dr\n1 2 3", "events: Ir\nfn=(7)\n", "events: Ir\n1 x\n"] {
            assert!(read(text, |_, _| {}, |_, _| {}).is_err(), "{text:?}");
        }
    }
}
