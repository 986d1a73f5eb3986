//! Which cells are measured, and in which order.

use std::collections::HashSet;

use crate::protocol::Mode;
use crate::report::{self, REFERENCE};
use crate::results::{Kind, Link, Load};
use crate::run::cli::RunArgs;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    pub link: Link,
    pub mode: Mode,
    pub load: Load,
    pub round: u32,
}

/// All that is to be measured. Within a round the modes take turns with each load, so that what is compared lies
/// close together in time; and from round to round another mode begins.
pub fn tasks(args: &RunArgs) -> Vec<Task> {
    let servers: Vec<(Link, Mode)> = args
        .links
        .iter()
        .flat_map(|&link| args.modes.iter().map(move |&mode| (link, mode)))
        .filter(|(link, mode)| *link == Link::Veth || !mode.is_kernel())
        .collect();
    let all_loads = loads(args);
    let mut tasks = Vec::new();
    for round in 1..=args.rounds.get() {
        for &load in &all_loads {
            for turn in 0..servers.len() {
                let (link, mode) = servers[(turn + round as usize - 1) % servers.len()];
                if is_wanted(args, link, mode, load) {
                    tasks.push(Task { link, mode, load, round });
                }
            }
        }
    }
    tasks
}

fn is_wanted(args: &RunArgs, link: Link, mode: Mode, load: Load) -> bool {
    let connections = args.ring_connections.as_ref().filter(|_| link == Link::Ring);
    let is_served = match load.kind {
        Kind::Requests => connections.unwrap_or(&args.connections).contains(&load.connections),
        Kind::StreamUp | Kind::StreamDown => mode.streams(),
    };
    is_served
        && (load.persist_delay_us == 0 || mode.persists() && link != Link::Ring)
        && (!args.only_targets || load == REFERENCE || report::is_compared(link, mode, load))
}

/// The loads of all links.
fn loads(args: &RunArgs) -> Vec<Load> {
    let mut connections = args.connections.clone();
    if args.links.contains(&Link::Ring) {
        connections.extend(args.ring_connections.iter().flatten());
    }
    let mut known = HashSet::new();
    connections.retain(|number| known.insert(*number));
    let mut loads = Vec::new();
    for &persist_delay_us in &args.persist_delay_us {
        let delay_size = [args.delay_size];
        let sizes = if persist_delay_us == 0 { &args.sizes[..] } else { &delay_size };
        for &size in sizes {
            let loads_of_size = connections.iter();
            loads.extend(
                loads_of_size
                    .map(|&connections| Load { persist_delay_us, ..Load::requests(size, connections) }),
            );
        }
    }
    if !args.no_streams {
        let kinds = [Kind::StreamUp, Kind::StreamDown];
        loads.extend(kinds.map(|kind| Load::stream(kind, args.stream_size)));
    }
    loads
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn run_args(more: &[&str]) -> RunArgs {
        let words = ["pmbench", "run", "--out", "o"];
        let cli = Cli::try_parse_from(words.iter().chain(more)).expect("good arguments");
        let Command::Run(args) = cli.command else { unreachable!("run was asked for") };
        args
    }

    #[test]
    fn each_cell_is_measured_once_a_round() {
        let tasks = tasks(&run_args(&[]));
        for (at, task) in tasks.iter().enumerate() {
            assert!(!tasks[..at].contains(task), "{task:?} twice");
        }
        // 9 modes on veth and 4 each on memif and ring with 12 loads; longer persists with 4 loads, without ring and the
        // 4 servers that make nothing durable; streams each way with 4 modes on veth and 2 each on memif and ring.
        assert_eq!(tasks.len(), 3 * (17 * 12 + 9 * 4 + 8 * 2));
        assert!(tasks.iter().all(|task| task.link == Link::Veth || !task.mode.is_kernel()));
        assert!(tasks.iter().all(|task| task.load.persist_delay_us == 0 || task.load.size == 1024));
        let streams = tasks.iter().filter(|task| task.load.is_stream());
        assert!(streams.clone().all(|task| task.load.connections == 1 && task.load.size == 1 << 20));
    }

    #[test]
    fn ring_may_have_connections_of_its_own() {
        let numbers = ["--connections", "10,50", "--ring-connections", "1,50", "--no-streams"];
        let tasks = tasks(&run_args(&[&numbers[..], &["--links", "memif,ring", "--rounds", "1"]].concat()));
        for (link, expected) in [(Link::Memif, [10, 50]), (Link::Ring, [1, 50])] {
            let of_link = || tasks.iter().filter(|task| task.link == link && task.load.persist_delay_us == 0);
            assert_eq!(of_link().count(), 4 * 3 * 2);
            assert!(of_link().all(|task| expected.contains(&task.load.connections)), "{link}");
        }
        assert!(tasks.iter().all(|task| task.link != Link::Ring || task.load.persist_delay_us == 0));
    }

    #[test]
    fn the_targets_have_their_cells_and_each_mode_the_usual_load() {
        let all = tasks(&run_args(&["--rounds", "1"]));
        let few = tasks(&run_args(&["--rounds", "1", "--only-targets"]));
        assert!(few.len() < all.len() / 4, "{} of {}", few.len(), all.len());
        let is_measured =
            |link, mode, load| few.iter().any(|task| (task.link, task.mode, task.load) == (link, mode, load));
        for Task { link, mode, load, .. } in all {
            let wanted = report::is_compared(link, mode, load) || load == REFERENCE;
            assert_eq!(is_measured(link, mode, load), wanted, "{mode} on {link}, {load}");
        }
        let small = Load { size: 64, ..REFERENCE };
        assert!(
            is_measured(Link::Ring, Mode::Paste, small) && is_measured(Link::Memif, Mode::DpdkCopy, small)
        );
    }

    #[test]
    fn the_modes_take_turns_with_each_load() {
        let args = run_args(&["--modes", "status-quo,paste", "--links", "veth", "--persist-delay-us", "0"]);
        let tasks = tasks(&args);
        for pair in tasks.chunks(2) {
            assert_eq!((pair[0].load, pair[0].round), (pair[1].load, pair[1].round));
            assert_ne!(pair[0].mode, pair[1].mode);
        }
        let first_of = |round| tasks.iter().find(|task| task.round == round).map(|task| task.mode);
        assert_ne!(first_of(1), first_of(2));
    }
}
