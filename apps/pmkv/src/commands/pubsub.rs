//! Messages to whoever listens.

use super::command;
use crate::command::{Command, Context, Refusal};
use crate::glob;

pub(super) const COMMANDS: &[Command] = &[
    command!("psubscribe", -2, [Pubsub], (0, 0, 0), |cx| subscribe(cx, true)),
    command!("publish", 3, [Pubsub Fast], (0, 0, 0), publish),
    command!("pubsub", -2, [Pubsub], (0, 0, 0), pubsub),
    command!("punsubscribe", -1, [Pubsub], (0, 0, 0), |cx| unsubscribe(cx, true)),
    command!("subscribe", -2, [Pubsub], (0, 0, 0), |cx| subscribe(cx, false)),
    command!("unsubscribe", -1, [Pubsub], (0, 0, 0), |cx| unsubscribe(cx, false)),
];

fn confirm(cx: &mut Context<'_>, what: &str, channel: Option<&[u8]>) {
    cx.out.push(3);
    cx.out.bulk(what.as_bytes());
    match channel {
        Some(channel) => cx.out.bulk(channel),
        None => cx.out.null(),
    }
    cx.out.integer((cx.client.channels.len() + cx.client.patterns.len()) as i64);
}

fn subscribe(cx: &mut Context<'_>, is_pattern: bool) -> Result<(), Refusal> {
    for index in 1..cx.req.len() {
        let channel = cx.arg(index);
        let Context { clients, client, .. } = cx;
        clients.subscribe(client, &channel, is_pattern);
        confirm(cx, if is_pattern { "psubscribe" } else { "subscribe" }, Some(&channel));
    }
    Ok(())
}

fn unsubscribe(cx: &mut Context<'_>, is_pattern: bool) -> Result<(), Refusal> {
    let what = if is_pattern { "punsubscribe" } else { "unsubscribe" };
    let own = if is_pattern { &cx.client.patterns } else { &cx.client.channels };
    let channels: Vec<Box<[u8]>> = match cx.req.len() {
        1 => own.clone(),
        len => (1..len).map(|index| cx.arg(index).into()).collect(),
    };
    if channels.is_empty() {
        confirm(cx, what, None);
    }
    for channel in channels {
        let Context { clients, client, .. } = cx;
        clients.unsubscribe(client, &channel, is_pattern);
        confirm(cx, what, Some(&channel));
    }
    Ok(())
}

fn publish(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (channel, message) = (cx.arg(1), cx.arg(2));
    let Context { clients, client, .. } = cx;
    let heard = clients.publish(client, &channel, &message);
    cx.out.integer(heard as i64);
    Ok(())
}

fn pubsub(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.req.is(1, "CHANNELS") && cx.req.len() <= 3 {
        let pattern = cx.arg(2);
        let takes = |name: &[u8]| cx.req.len() == 2 || glob::matches(&pattern, name);
        let found: Vec<&[u8]> =
            cx.clients.channels().map(|(name, _)| name).filter(|name| takes(name)).collect();
        cx.out.array(found.len());
        found.into_iter().for_each(|name| cx.out.bulk(name));
    } else if cx.req.is(1, "NUMSUB") {
        cx.out.map(cx.req.len() - 2);
        for index in 2..cx.req.len() {
            let name = cx.arg(index);
            let count =
                cx.clients.channels().find(|(channel, _)| *channel == &*name).map_or(0, |(_, count)| count);
            cx.out.bulk(&name);
            cx.out.integer(count as i64);
        }
    } else if cx.req.is(1, "NUMPAT") && cx.req.len() == 2 {
        cx.out.integer(cx.clients.pattern_count() as i64);
    } else {
        return Err(super::server::unknown_subcommand(cx));
    }
    Ok(())
}
