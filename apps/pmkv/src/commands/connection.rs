//! The connection itself, and who is at its other end.

use super::command;
use crate::clients::Client;
use crate::command::{Command, Context, Refusal};

pub(super) const COMMANDS: &[Command] = &[
    command!("auth", -2, [Fast NoAuth], (0, 0, 0), auth),
    command!("client", -2, [Admin], (0, 0, 0), client),
    command!("echo", 2, [Fast], (0, 0, 0), echo),
    command!("hello", -1, [Fast NoAuth], (0, 0, 0), hello),
    command!("ping", -1, [Fast], (0, 0, 0), ping),
    command!("quit", -1, [Fast NoAuth], (0, 0, 0), quit),
    command!("reset", 1, [Fast NoAuth], (0, 0, 0), reset),
    command!("select", 2, [Fast], (0, 0, 0), select),
];

fn ping(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.req.len() > 2 {
        return Err(Refusal::Arity("ping".into()));
    }
    let text = cx.arg(1);
    if cx.client.is_subscribed() && !cx.out.is_resp3() {
        cx.out.array(2);
        cx.out.bulk(b"pong");
        cx.out.bulk(&text);
    } else if cx.req.len() == 2 {
        cx.out.bulk(&text);
    } else {
        cx.out.simple("PONG");
    }
    Ok(())
}

fn echo(cx: &mut Context<'_>) -> Result<(), Refusal> {
    match cx.req.in_place(1) {
        Some(extents) => cx.out.extents(extents.iter().cloned()),
        None => cx.out.bulk(&cx.arg(1)),
    }
    Ok(())
}

fn select(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.integer(1)? != 0 {
        return Err(Refusal::NoDatabase);
    }
    cx.out.ok();
    Ok(())
}

fn quit(cx: &mut Context<'_>) -> Result<(), Refusal> {
    cx.client.is_leaving = true;
    cx.out.ok();
    Ok(())
}

fn reset(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let Context { clients, client, server, out, .. } = cx;
    clients.forget(client);
    client.name.clear();
    client.user = server.config.unnamed_user();
    client.out.set_resp3(false);
    out.set_resp3(false);
    out.simple("RESET");
    Ok(())
}

fn auth(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (user, password) = match cx.req.len() {
        2 => {
            if cx.server.config.users.is_open() {
                return Err("ERR AUTH <password> called without any password configured for the default user. Are you \
                            sure your configuration is correct?"
                    .into());
            }
            (b"default".into(), cx.arg(1))
        }
        3 => (cx.arg(1), cx.arg(2)),
        _ => return Err(Refusal::Syntax),
    };
    sign_in(cx, &user, &password)?;
    cx.out.ok();
    Ok(())
}

fn sign_in(cx: &mut Context<'_>, user: &[u8], password: &[u8]) -> Result<(), Refusal> {
    let Context { server, client, .. } = cx;
    client.user = Some(server.config.users.check(user, password).ok_or(Refusal::WrongPassword)?);
    Ok(())
}

fn hello(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let mut version = None;
    if cx.req.len() > 1 {
        let number = cx.integer(1).map_err(|_| "ERR Protocol version is not an integer or out of range")?;
        if !(2..=3).contains(&number) {
            return Err("NOPROTO unsupported protocol version".into());
        }
        version = Some(number);
    }
    let (mut at, mut credentials, mut name) = (2, None, None);
    while at < cx.req.len() {
        if cx.req.is(at, "AUTH") && at + 2 < cx.req.len() {
            credentials = Some((cx.arg(at + 1), cx.arg(at + 2)));
            at += 3;
        } else if cx.req.is(at, "SETNAME") && at + 1 < cx.req.len() {
            name = Some(checked_name(&cx.arg(at + 1))?);
            at += 2;
        } else {
            let option = cx.arg(at);
            let option = String::from_utf8_lossy(&option);
            return Err(Refusal::Other(format!("ERR Syntax error in HELLO option '{option}'").into()));
        }
    }
    if let Some((user, password)) = credentials {
        sign_in(cx, &user, &password)?;
    }
    if cx.client.user.is_none() {
        return Err("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH \
                    <user> <pass> option can be used to authenticate the client and select the RESP protocol version at \
                    the same time"
            .into());
    }
    if let Some(name) = name {
        cx.client.name = name;
    }
    if let Some(version) = version {
        cx.client.out.set_resp3(version == 3);
        cx.out.set_resp3(version == 3);
    }
    let version = if cx.out.is_resp3() { 3 } else { 2 };
    cx.out.map(7);
    let strings = [("server", "redis"), ("version", crate::server::REDIS_VERSION)];
    for (field, value) in strings {
        cx.out.bulk(field.as_bytes());
        cx.out.bulk(value.as_bytes());
    }
    cx.out.bulk(b"proto");
    cx.out.integer(version);
    cx.out.bulk(b"id");
    cx.out.integer(cx.client.id as i64);
    for (field, value) in [("mode", "standalone"), ("role", "master")] {
        cx.out.bulk(field.as_bytes());
        cx.out.bulk(value.as_bytes());
    }
    cx.out.bulk(b"modules");
    cx.out.array(0);
    Ok(())
}

/// A client's name, or a library's: it stands in lists that are separated by blanks and lines.
fn checked_name(name: &[u8]) -> Result<Vec<u8>, Refusal> {
    if name.iter().any(|byte| !(b'!'..=b'~').contains(byte)) {
        return Err("ERR Client names cannot contain spaces, newlines or special characters.".into());
    }
    Ok(name.to_vec())
}

fn client(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (what, len) = (cx.arg(1).to_ascii_uppercase(), cx.req.len());
    match (&*what, len) {
        (b"ID", 2) => cx.out.integer(cx.client.id as i64),
        (b"GETNAME", 2) if cx.client.name.is_empty() => cx.out.null(),
        (b"GETNAME", 2) => cx.out.bulk(&cx.client.name),
        (b"SETNAME", 3) => {
            cx.client.name = checked_name(&cx.arg(2))?;
            cx.out.ok();
        }
        (b"SETINFO", 4) => {
            let value = checked_name(&cx.arg(3))?;
            if cx.req.is(2, "LIB-NAME") {
                cx.client.lib_name = value;
            } else if cx.req.is(2, "LIB-VER") {
                cx.client.lib_ver = value;
            } else {
                let option = cx.arg(2);
                let option = String::from_utf8_lossy(&option);
                return Err(Refusal::Other(format!("ERR Unrecognized option '{option}'").into()));
            }
            cx.out.ok();
        }
        (b"INFO", 2) => {
            let line = line(cx.client, cx.store.now_ms());
            cx.out.verbatim(&line);
        }
        (b"LIST", 2) => {
            let (now_ms, own) = (cx.store.now_ms(), &*cx.client);
            let others = cx
                .clients
                .places
                .iter()
                .map(|place| &**place)
                .filter(|other| other.id != 0 && other.id != own.id);
            let mut all: Vec<&Client> = others.chain([own]).collect();
            all.sort_unstable_by_key(|client| client.id);
            let text: String = all.into_iter().map(|client| line(client, now_ms)).collect();
            cx.out.verbatim(&text);
        }
        (b"NO-EVICT" | b"NO-TOUCH", 3) if cx.req.is(2, "ON") || cx.req.is(2, "OFF") => cx.out.ok(),
        _ => return Err(super::server::unknown_subcommand(cx)),
    }
    Ok(())
}

/// A client, as CLIENT LIST has it.
fn line(client: &Client, now_ms: u64) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let seconds = |since_ms: u64| now_ms.saturating_sub(since_ms) / 1000;
    let addr = client.addr.map_or(String::new(), |addr| addr.to_string());
    let transaction = client.transaction.as_ref().map_or(-1, |transaction| transaction.requests.len() as i64);
    format!(
        "id={} addr={addr} name={} age={} idle={} flags={} db=0 sub={} psub={} multi={transaction} omem={} cmd={} user={} \
         resp={} lib-name={} lib-ver={}\n",
        client.id,
        text(&client.name),
        seconds(client.opened_ms),
        seconds(client.last_ms),
        if client.waiting.is_some() {
            "b"
        } else if client.is_subscribed() {
            "P"
        } else {
            "N"
        },
        client.channels.len(),
        client.patterns.len(),
        client.out.held_bytes(),
        if client.last_command.is_empty() { "NULL" } else { client.last_command },
        client.user.as_deref().unwrap_or("default"),
        if client.out.is_resp3() { 3 } else { 2 },
        text(&client.lib_name),
        text(&client.lib_ver),
    )
}
