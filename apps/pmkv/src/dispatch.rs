//! From a request to its command: whether it may be done, now or at a transaction's end.

use crate::command::{Command, Context, Flag, Refusal};
use crate::resp::Request;

/// What somebody may do in version 2 of the protocol who listens to channels.
const WHILE_SUBSCRIBED: [&str; 7] =
    ["ping", "psubscribe", "punsubscribe", "quit", "reset", "subscribe", "unsubscribe"];
/// Memory of all commands of a transaction.
const MAX_TRANSACTION_BYTES: usize = 64 << 20;

/// What a request's record takes at most, unless it copies what is there already.
pub fn room_for(request: &Request) -> u64 {
    // Each argument may become a change of its own, with the key before it.
    let changes = request.len() as u64;
    request.bytes() + changes * (32 + request.arg_len(1))
}

/// What a client's request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered, or waits.
    Done,
    /// It is to be kept for the end of the client's transaction.
    Queued,
}

/// Does what a client asks for, or says why not.
pub fn handle(cx: &mut Context<'_>) -> Outcome {
    match admit(cx) {
        Err(refusal) => {
            refuse(cx, &refusal);
            if let Some(transaction) = &mut cx.client.transaction {
                transaction.is_aborted = true;
            }
            Outcome::Done
        }
        Ok(command) => {
            cx.client.last_command = command.name;
            let is_queued = cx.client.transaction.is_some()
                && !command.is(Flag::NoMulti)
                && command.name != "reset"
                && command.name != "quit";
            if is_queued {
                cx.out.simple("QUEUED");
                return Outcome::Queued;
            }
            run_command(cx, command);
            Outcome::Done
        }
    }
}

/// Does what a request of a transaction asks for.
pub fn run(cx: &mut Context<'_>) {
    match admit(cx) {
        Ok(command) => run_command(cx, command),
        Err(refusal) => refuse(cx, &refusal),
    }
}

fn refuse(cx: &mut Context<'_>, refusal: &Refusal) {
    cx.server.stats.errors += 1;
    cx.out.error(&refusal.to_string());
}

fn run_command(cx: &mut Context<'_>, command: &'static Command) {
    cx.name = command.name;
    let end = cx.out.end();
    if let Err(refusal) = (command.run)(cx) {
        cx.out.cut(end);
        refuse(cx, &refusal);
    }
}

/// The command of a request, if it is to be done.
fn admit(cx: &Context<'_>) -> Result<&'static Command, Refusal> {
    let name = cx.req.arg(0);
    let Some(command) = Command::find(&name) else { return Err(unknown(cx.req)) };
    if !command.takes(cx.req) {
        return Err(Refusal::Arity(command.name.into()));
    }
    if cx.client.user.is_none() && !command.is(Flag::NoAuth) {
        return Err(Refusal::NoAuth);
    }
    if cx.client.is_subscribed() && !cx.out.is_resp3() && !WHILE_SUBSCRIBED.contains(&command.name) {
        let text = format!(
            "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this \
             context",
            command.name
        );
        return Err(Refusal::Other(text.into()));
    }
    if command.is(Flag::Denyoom) {
        let config = &cx.server.config;
        if config.max_memory_bytes != 0 && cx.store.used_bytes() > config.max_memory_bytes {
            return Err(Refusal::OutOfMemory);
        }
        if !cx.store.has_room(room_for(cx.req) + cx.store.record_bytes() as u64, cx.shard) {
            return Err(Refusal::Full);
        }
    } else if command.is(Flag::Write)
        && !cx.store.has_least_room(room_for(cx.req) + cx.store.record_bytes() as u64, cx.shard)
    {
        return Err(Refusal::Full);
    }
    if cx.req.is_cut() {
        return Err(Refusal::Full);
    }
    let is_long = cx.client.transaction.as_ref().is_some_and(|transaction| {
        transaction.held_bytes + cx.req.text_bytes() > MAX_TRANSACTION_BYTES && !command.is(Flag::NoMulti)
    });
    if is_long {
        return Err("ERR the transaction is too long".into());
    }
    Ok(command)
}

fn unknown(req: &Request) -> Refusal {
    let text = |index: usize| {
        let word = req.arg(index);
        String::from_utf8_lossy(&word[..word.len().min(128)]).into_owned()
    };
    let mut args = String::new();
    for index in 1..req.len() {
        if args.len() >= 128 {
            break;
        }
        args += &format!("'{}' ", text(index));
    }
    Refusal::Other(format!("ERR unknown command '{}', with args beginning with: {args}", text(0)).into())
}
