//! The server: what it can do, how it is, and what is durable.

use super::command;
use crate::command::{Command, Context, Flag, Refusal};
use crate::glob;
use crate::resp::Reply;

pub(super) const COMMANDS: &[Command] = &[
    command!("acl", -2, [Admin], (0, 0, 0), acl),
    command!("command", -1, [], (0, 0, 0), commands),
    command!("config", -2, [Admin], (0, 0, 0), config),
    command!("info", -1, [], (0, 0, 0), info),
    command!("time", 1, [Fast], (0, 0, 0), time),
    command!("wait", 3, [Blocking], (0, 0, 0), wait),
    command!("waitaof", 4, [Blocking], (0, 0, 0), waitaof),
];

/// A command whose second word is none that it knows.
pub(super) fn unknown_subcommand(cx: &Context<'_>) -> Refusal {
    let word = cx.arg(1);
    let word = String::from_utf8_lossy(&word[..word.len().min(128)]).into_owned();
    let name = cx.name.to_ascii_uppercase();
    Refusal::Other(
        format!("ERR unknown subcommand or wrong number of arguments for '{word}'. Try {name} HELP.").into(),
    )
}

fn time(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let now_ms = cx.store.now_ms();
    cx.out.array(2);
    cx.out.bulk_integer((now_ms / 1000) as i64);
    cx.out.bulk_integer((now_ms % 1000 * 1000) as i64);
    Ok(())
}

/// How many replicas have what this client wrote: there are none.
fn wait(cx: &mut Context<'_>) -> Result<(), Refusal> {
    cx.integer(1)?;
    if cx.integer(2).map_err(|_| "ERR timeout is not an integer or out of range")? < 0 {
        return Err("ERR timeout is negative".into());
    }
    cx.out.integer(0);
    Ok(())
}

/// On how many media what this client wrote is durable: here, as this reply waits for the commit like any other, and on no
/// replica.
fn waitaof(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if !(0..=1).contains(&cx.integer(1)?) {
        return Err("ERR value is out of range, value must between 0 and 1".into());
    }
    if cx.integer(2)? < 0 {
        return Err(Refusal::NotPositive);
    }
    if cx.integer(3).map_err(|_| "ERR timeout is not an integer or out of range")? < 0 {
        return Err("ERR timeout is negative".into());
    }
    cx.out.array(2);
    cx.out.integer(1);
    cx.out.integer(0);
    Ok(())
}

fn acl(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.req.is(1, "WHOAMI") && cx.req.len() == 2 {
        let user = cx.client.user.clone().unwrap_or_default();
        cx.out.bulk(user.as_bytes());
        return Ok(());
    }
    Err(unknown_subcommand(cx))
}

fn commands(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let table = super::table();
    if cx.req.len() == 1 {
        cx.out.array(table.len());
        table.iter().for_each(|command| describe(cx.out, command));
    } else if cx.req.is(1, "COUNT") && cx.req.len() == 2 {
        cx.out.integer(table.len() as i64);
    } else if cx.req.is(1, "LIST") && cx.req.len() == 2 {
        cx.out.array(table.len());
        table.iter().for_each(|command| cx.out.bulk(command.name.as_bytes()));
    } else if cx.req.is(1, "INFO") {
        cx.out.array(cx.req.len() - 2);
        for index in 2..cx.req.len() {
            match Command::find(&cx.arg(index)) {
                Some(command) => describe(cx.out, command),
                None => cx.out.null_array(),
            }
        }
    } else if cx.req.is(1, "DOCS") {
        // Nobody has written any: clients take what they know.
        cx.out.map(0);
    } else {
        return Err(unknown_subcommand(cx));
    }
    Ok(())
}

fn describe(out: &mut Reply, command: &Command) {
    out.array(10);
    out.bulk(command.name.as_bytes());
    out.integer(command.arity.into());
    let flags: Vec<&str> = command.flags.iter().filter_map(|flag| flag.name()).collect();
    out.set(flags.len());
    flags.into_iter().for_each(|flag| out.simple(flag));
    let (first, last, step) = command.keys;
    [first, last, step].into_iter().for_each(|number| out.integer(number.into()));
    out.set(1);
    out.simple(if command.is(Flag::Write) { "@write" } else { "@read" });
    (0..3).for_each(|_| out.array(0));
}

fn config(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.req.is(1, "RESETSTAT") && cx.req.len() == 2 {
        cx.server.stats = Default::default();
        cx.out.ok();
        return Ok(());
    }
    if cx.req.is(1, "SET") {
        return Err(
            "ERR CONFIG SET is not supported: give options at the start, see pmkv serve --help".into()
        );
    }
    if !cx.req.is(1, "GET") || cx.req.len() < 3 {
        return Err(unknown_subcommand(cx));
    }
    let patterns: Vec<Vec<u8>> = (2..cx.req.len()).map(|index| cx.arg(index).to_ascii_lowercase()).collect();
    let values = cx.server.config.values();
    let takes = |name: &str| patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes()));
    let found: Vec<_> = values.into_iter().filter(|(name, _)| takes(name)).collect();
    cx.out.map(found.len());
    for (name, value) in found {
        cx.out.bulk(name.as_bytes());
        cx.out.bulk(value.as_bytes());
    }
    Ok(())
}

fn info(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let wanted: Vec<Vec<u8>> = (1..cx.req.len()).map(|index| cx.arg(index).to_ascii_lowercase()).collect();
    let is_all =
        wanted.is_empty() || wanted.iter().any(|word| matches!(&**word, b"all" | b"everything" | b"default"));
    let mut text = String::new();
    for (title, lines) in sections(cx) {
        if is_all || wanted.iter().any(|word| **word == *title.to_ascii_lowercase().as_bytes()) {
            if !text.is_empty() {
                text += "\r\n";
            }
            text += &format!("# {title}\r\n");
            lines.into_iter().for_each(|(name, value)| text += &format!("{name}:{value}\r\n"));
        }
    }
    cx.out.verbatim(&text);
    Ok(())
}

type Section = (&'static str, Vec<(&'static str, String)>);

fn sections(cx: &Context<'_>) -> Vec<Section> {
    let (server, store, shard) = (&*cx.server, &*cx.store, cx.shard);
    let (stats, counters) = (&server.stats, shard.counters());
    let uptime = store.now_ms().saturating_sub(server.started_ms) / 1000;
    let arena = shard.arena();
    let mut sections: Vec<Section> = vec![
        (
            "Server",
            vec![
                ("redis_version", crate::server::REDIS_VERSION.into()),
                ("pmkv_version", env!("CARGO_PKG_VERSION").into()),
                ("redis_mode", "standalone".into()),
                ("arch_bits", "64".into()),
                ("process_id", std::process::id().to_string()),
                ("tcp_port", server.config.port.to_string()),
                ("uptime_in_seconds", uptime.to_string()),
                ("uptime_in_days", (uptime / 86_400).to_string()),
            ],
        ),
        (
            "Clients",
            vec![
                ("connected_clients", cx.clients.connected.to_string()),
                ("maxclients", server.config.max_clients.to_string()),
                ("blocked_clients", cx.clients.waiting().to_string()),
            ],
        ),
        (
            "Memory",
            vec![
                ("used_memory", store.used_bytes().to_string()),
                ("maxmemory", server.config.max_memory_bytes.to_string()),
                ("maxmemory_policy", "noeviction".into()),
            ],
        ),
        (
            "Persistence",
            vec![
                ("loading", "0".into()),
                ("durability", "always".into()),
                ("domain", server.config.domain.clone()),
                ("pm_buffers", arena.buffers().to_string()),
                ("pm_buffers_free", arena.free_buffers().to_string()),
                ("pm_bytes", counters.pm_bytes.to_string()),
                ("log_entries", shard.log_entries().to_string()),
                ("log_entries_free", shard.free_log_entries().to_string()),
                ("log_records", counters.live_records.to_string()),
                ("log_payload_bytes", counters.live_payload_bytes.to_string()),
                ("live_payload_bytes", store.live_bytes().to_string()),
                ("moved_payload_bytes", store.moved_bytes().to_string()),
                ("copied_payload_bytes", counters.copied_bytes.to_string()),
                ("damaged_records", stats.damaged_records.to_string()),
            ],
        ),
        (
            "Stats",
            vec![
                ("total_connections_received", stats.connections.to_string()),
                ("total_commands_processed", stats.commands.to_string()),
                ("total_error_replies", stats.errors.to_string()),
                ("rejected_connections", stats.rejected.to_string()),
                ("client_output_buffer_limit_disconnections", stats.cut_off.to_string()),
                ("expired_keys", store.expired_keys().to_string()),
                ("fences", counters.fences.to_string()),
                ("appended_records", counters.appended_records.to_string()),
            ],
        ),
        ("Replication", vec![("role", "master".into()), ("connected_slaves", "0".into())]),
        ("Cluster", vec![("cluster_enabled", "0".into())]),
    ];
    let keys = if store.is_empty() {
        Vec::new()
    } else {
        vec![("db0", format!("keys={},expires={},avg_ttl=0", store.len(), store.expiring()))]
    };
    sections.push(("Keyspace", keys));
    sections
}
