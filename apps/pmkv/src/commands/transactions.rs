//! Commands that happen together, or not at all.

use super::command;
use crate::command::{Command, Context, Refusal};
use crate::dispatch;

pub(super) const COMMANDS: &[Command] = &[
    command!("discard", 1, [Fast NoMulti], (0, 0, 0), discard),
    command!("exec", 1, [NoMulti], (0, 0, 0), exec),
    command!("multi", 1, [Fast NoMulti], (0, 0, 0), multi),
    command!("unwatch", 1, [Fast], (0, 0, 0), unwatch),
    command!("watch", -2, [Fast NoMulti], (1, -1, 1), watch),
];

fn multi(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.client.transaction.is_some() {
        return Err("ERR MULTI calls can not be nested".into());
    }
    cx.client.transaction = Some(Box::default());
    cx.out.ok();
    Ok(())
}

fn discard(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.client.transaction.take().is_none() {
        return Err("ERR DISCARD without MULTI".into());
    }
    let Context { clients, client, .. } = cx;
    clients.unwatch(client);
    cx.out.ok();
    Ok(())
}

fn watch(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.client.transaction.is_some() {
        return Err("ERR WATCH inside MULTI is not allowed".into());
    }
    for index in 1..cx.req.len() {
        let key = cx.arg(index);
        let Context { clients, client, .. } = cx;
        clients.watch(client, &key);
    }
    cx.out.ok();
    Ok(())
}

fn unwatch(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let Context { clients, client, .. } = cx;
    clients.unwatch(client);
    cx.out.ok();
    Ok(())
}

fn exec(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let Some(transaction) = cx.client.transaction.take() else {
        return Err("ERR EXEC without MULTI".into());
    };
    let Context { clients, client, .. } = cx;
    let is_dirty = client.is_dirty;
    clients.unwatch(client);
    if transaction.is_aborted {
        return Err(Refusal::Aborted);
    }
    if is_dirty {
        cx.out.null_array();
        return Ok(());
    }
    let writes =
        |name: &[u8]| Command::find(name).is_some_and(|command| command.is(crate::command::Flag::Denyoom));
    let bytes = transaction.requests.iter().filter(|request| writes(&request.arg(0)));
    let bytes: u64 = bytes.map(dispatch::room_for).sum();
    // All or nothing: there has to be room for all of them.
    if bytes > 0 && !cx.store.has_room(bytes, cx.shard) {
        return Err("EXECABORT Transaction discarded: the store is full; remove keys, or make it larger with --pm-size".into());
    }
    cx.out.array(transaction.requests.len());
    for request in &transaction.requests {
        dispatch::run(&mut Context {
            req: request,
            name: cx.name,
            store: cx.store,
            shard: cx.shard,
            out: cx.out,
            client: cx.client,
            clients: cx.clients,
            server: cx.server,
            is_in_transaction: true,
        });
    }
    Ok(())
}
