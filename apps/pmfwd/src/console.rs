//! `-i`: commands, as testpmd spells them.

use std::io::{IsTerminal as _, Write, stdin};
use std::sync::mpsc::{Sender, channel};

use anyhow::{Result, ensure};
use clap::ValueEnum as _;
use dpdk::Statistics;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};

use crate::cli::{Cli, Mode, parse_burst, parse_segments};
use crate::forward::Forwarder;
use crate::packet::{SegmentLengths, address_text};
use crate::session::{counted, print_captured, print_started, unless_interrupted, watch_signals};
use crate::statistics::{Shown, forwarded, print_forwarded, print_logged, stream_totals};

const PROMPT: &str = "pmfwd> ";

/// Each command and what it does; words in capitals are to be filled in.
const COMMANDS: [(&str, &str); 15] = [
    ("start", "forward"),
    ("start tx_first", "send a burst from each port, then forward"),
    ("start tx_first N", "send N bursts from each port, then forward"),
    ("stop", "stop, and show what was forwarded"),
    ("show port stats all", "all ports' counters, and their rates since they were last shown (or of PORT)"),
    ("show port xstats all", "all ports' counters as their drivers have them (or of PORT)"),
    ("show port info all", "what the devices are and can do (or that of PORT)"),
    ("show fwd stats all", "what was forwarded since the last start"),
    ("clear port stats all", "set all ports' counters to zero"),
    ("clear fwd stats all", "count what is forwarded from zero"),
    ("set fwd MODE", "io, mac, macswap, rxonly, txonly, flowgen, icmpecho or log"),
    ("set burst N", "packets in a burst at most"),
    ("set txpkts L1,L2", "lengths of the segments of frames that are made here"),
    ("help", "this list"),
    ("quit", "stop and leave"),
];

/// A command, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    Start { tx_first: u32 },
    Stop,
    ShowStatistics(Which),
    ShowExtended(Which),
    ShowInfo(Which),
    ShowForwarded,
    ClearPorts,
    ClearForwarded,
    SetMode(Mode),
    SetBurst(usize),
    SetSegments(SegmentLengths),
    Help,
    Quit,
}

/// The ports that a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    All,
    One(usize),
}

/// What the console waits for.
enum Event {
    Line(Result<String, ReadlineError>),
    Signal,
}

/// Reads commands from standard input, a terminal or not, until `quit`, its end, SIGINT or SIGTERM, and answers on
/// `out`.
///
/// # Errors
/// The ports cannot be started. A command that cannot be done is answered, and the next one is read.
pub fn run(cli: &Cli, out: &mut impl Write) -> Result<()> {
    let (events, happened) = channel();
    let signals = events.clone();
    let stop = watch_signals(move || signals.send(Event::Signal).is_ok())?;
    let started = Forwarder::new(cli, &stop, || tracing::error!("a core has stopped; `stop` tells why"));
    let Some(forwarder) = unless_interrupted(started, cli.json, out)? else { return Ok(()) };
    let mut console = Console { before: counted(&forwarder)?, forwarder, shown: Shown::default() };
    let input = stdin();
    // The line editor changes them while it reads, and a signal may find it there.
    let settings = input.is_terminal().then(|| tcgetattr(&input)).transpose()?;
    let reader = read_lines(events, settings.is_some())?;
    writeln!(out, "{} ports are ready; `help` lists the commands", console.forwarder.ports().len())?;
    out.flush()?;
    loop {
        reader.send(())?;
        let line = match happened.recv()? {
            Event::Line(Ok(line)) => line,
            Event::Line(Err(ReadlineError::Eof | ReadlineError::Interrupted)) => break,
            Event::Line(Err(error)) => return Err(error.into()),
            Event::Signal => {
                // A terminal that is gone takes nothing back; what was forwarded is still to be put in order.
                if let Some(settings) = &settings
                    && tcsetattr(&input, OptionalActions::Now, settings).is_ok()
                {
                    writeln!(out)?;
                }
                break;
            }
        };
        match parse(&line) {
            _ if line.trim().is_empty() => {}
            Ok(Command::Quit) => break,
            Ok(command) => {
                if let Err(error) = console.execute(command, out) {
                    writeln!(out, "{error:#}")?;
                }
            }
            Err(why) => writeln!(out, "{why}")?,
        }
        out.flush()?;
    }
    if console.forwarder.is_running()
        && let Err(error) = console.execute(Command::Stop, out)
    {
        writeln!(out, "{error:#}")?;
    }
    print_captured(console.forwarder.end()?, out)
}

/// Reads a line whenever it is asked for one, in a thread of its own, which nothing but a line can wake.
fn read_lines(events: Sender<Event>, is_terminal: bool) -> Result<Sender<()>> {
    // Nobody would end a bracketed paste that a signal breaks off.
    let config = Config::builder().bracketed_paste(false).auto_add_history(is_terminal).build();
    let mut editor: Editor<Words, DefaultHistory> = Editor::with_config(config)?;
    editor.set_helper(Some(Words));
    let (ask, asked) = channel();
    std::thread::Builder::new().name("commands".to_owned()).spawn(move || {
        while asked.recv().is_ok() && events.send(Event::Line(editor.readline(PROMPT))).is_ok() {}
    })?;
    Ok(ask)
}

struct Console {
    forwarder: Forwarder,
    shown: Shown,
    /// What the ports had counted when forwarding began.
    before: Vec<Statistics>,
}

impl Console {
    fn execute(&mut self, command: Command, out: &mut impl Write) -> Result<()> {
        match command {
            Command::Start { tx_first } => {
                let before = counted(&self.forwarder)?;
                self.forwarder.start(tx_first)?;
                self.before = before;
                print_started(&self.forwarder, out)
            }
            Command::Stop => {
                let stopped = self.forwarder.stop();
                self.show_forwarded(out)?;
                stopped
            }
            Command::ShowStatistics(which) => {
                for number in self.ports(which)? {
                    self.shown.port(&self.forwarder, number)?.print(out)?;
                }
                Ok(())
            }
            Command::ShowExtended(which) => {
                for number in self.ports(which)? {
                    writeln!(out, "###### NIC extended statistics for port {number}")?;
                    for counter in self.forwarder.ports()[number].port.extended_statistics()? {
                        writeln!(out, "{}: {}", counter.name, counter.value)?;
                    }
                }
                Ok(())
            }
            Command::ShowInfo(which) => {
                self.ports(which)?.into_iter().try_for_each(|number| self.show_info(number, out))
            }
            Command::ShowForwarded => self.show_forwarded(out),
            Command::ClearPorts => {
                for port in self.forwarder.ports() {
                    port.port.reset_statistics()?;
                }
                self.shown.cleared();
                self.before.fill(Statistics::default());
                Ok(())
            }
            Command::ClearForwarded => {
                ensure!(!self.forwarder.is_running(), "packets are being forwarded: stop first");
                self.before = counted(&self.forwarder)?;
                self.forwarder.counters().for_each(|(_, counters)| counters.reset());
                Ok(())
            }
            Command::SetMode(mode) => {
                self.forwarder.change(|settings| settings.mode = mode)?;
                writeln!(out, "Set {} packet forwarding mode", mode_name(mode))?;
                Ok(())
            }
            Command::SetBurst(burst) => {
                self.forwarder.change(|settings| settings.burst = burst)?;
                writeln!(out, "Number of packets per burst set to {burst}")?;
                Ok(())
            }
            Command::SetSegments(segments) => {
                writeln!(out, "Frames made here have segments of {segments} bytes")?;
                self.forwarder.change(|settings| settings.segments = segments)
            }
            Command::Help => {
                let width = COMMANDS.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
                COMMANDS
                    .iter()
                    .try_for_each(|(command, what)| writeln!(out, "  {command:<width$}  {what}"))?;
                Ok(())
            }
            Command::Quit => Ok(()),
        }
    }

    fn ports(&self, which: Which) -> Result<Vec<usize>> {
        let count = self.forwarder.ports().len();
        match which {
            Which::All => Ok((0..count).collect()),
            Which::One(number) => {
                ensure!(number < count, "there is no port {number}; ports are 0 to {}", count - 1);
                Ok(vec![number])
            }
        }
    }

    fn show_forwarded(&self, out: &mut impl Write) -> Result<()> {
        print_forwarded(&forwarded(&self.forwarder, &self.before)?, out)?;
        if self.forwarder.settings().mode == Mode::Log {
            print_logged(&stream_totals(&self.forwarder), out)?;
        }
        Ok(())
    }

    fn show_info(&self, number: usize, out: &mut impl Write) -> Result<()> {
        let port = &self.forwarder.ports()[number].port;
        let (info, link) = (port.info(), port.link()?);
        let edge = "*".repeat(21);
        writeln!(out, "\n{edge} Infos for port {number:<2} {edge}")?;
        writeln!(out, "MAC address: {}", address_text(info.mac))?;
        writeln!(out, "Device name: {}", info.name)?;
        writeln!(out, "Driver name: {}", info.driver)?;
        if let Some(socket) = info.socket {
            writeln!(out, "Connect to socket: {socket}")?;
        }
        writeln!(out, "Link status: {}", if link.up { "up" } else { "down" })?;
        match link.speed_mbps {
            Some(mbps) => writeln!(out, "Link speed: {mbps} Mbps")?,
            None => writeln!(out, "Link speed: unknown")?,
        }
        writeln!(out, "Link duplex: {}", if link.full_duplex { "full-duplex" } else { "half-duplex" })?;
        writeln!(out, "MTU: {}", port.mtu()?)?;
        writeln!(out, "Max possible RX queues: {}", info.max_rx_queues)?;
        writeln!(out, "Max possible TX queues: {}", info.max_tx_queues)?;
        Ok(())
    }
}

fn mode_name(mode: Mode) -> String {
    mode.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Reads a command; or says what it lacks.
fn parse(line: &str) -> Result<Command, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let which = |word: &str| match word {
        "all" => Ok(Which::All),
        number => {
            number.parse().map(Which::One).map_err(|_| format!("{number} is no port; write a number or all"))
        }
    };
    match words[..] {
        ["start"] => Ok(Command::Start { tx_first: 0 }),
        ["start", "tx_first"] => Ok(Command::Start { tx_first: 1 }),
        ["start", "tx_first", bursts] => match bursts.parse() {
            Ok(tx_first @ 1..) => Ok(Command::Start { tx_first }),
            _ => Err(format!("{bursts} is no number of bursts; write 1 or more")),
        },
        ["stop"] => Ok(Command::Stop),
        ["show", "port", "stats", port] => Ok(Command::ShowStatistics(which(port)?)),
        ["show", "port", "xstats", port] => Ok(Command::ShowExtended(which(port)?)),
        ["show", "port", "info", port] => Ok(Command::ShowInfo(which(port)?)),
        ["show", "fwd", "stats", "all"] => Ok(Command::ShowForwarded),
        ["clear", "port", "stats", "all"] => Ok(Command::ClearPorts),
        ["clear", "fwd", "stats", "all"] => Ok(Command::ClearForwarded),
        ["set", "fwd", mode] => match Mode::from_str(mode, false) {
            Ok(mode) => Ok(Command::SetMode(mode)),
            Err(_) => Err(format!("{mode} is no mode; there are {}", mode_names().join(", "))),
        },
        ["set", "burst", burst] => parse_burst(burst).map(Command::SetBurst),
        ["set", "txpkts", lengths] => parse_segments(lengths).map(Command::SetSegments),
        ["help" | "?"] => Ok(Command::Help),
        ["quit" | "exit"] => Ok(Command::Quit),
        _ => Err(format!("`{}` is no command; `help` lists them", line.trim())),
    }
}

fn mode_names() -> Vec<String> {
    Mode::value_variants().iter().map(|mode| mode_name(*mode)).collect()
}

/// Completes the words of commands.
struct Words;

impl Words {
    /// What the word that ends at the end of `line` may become, and where it begins.
    fn completions(line: &str) -> (usize, Vec<String>) {
        let begins = line.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let (before, word) = line.split_at(begins);
        let given: Vec<&str> = before.split_whitespace().collect();
        let mut found: Vec<String> = Vec::new();
        for (command, _) in COMMANDS {
            let words: Vec<&str> = command.split(' ').collect();
            let Some(next) = words.strip_prefix(given.as_slice()).and_then(|rest| rest.first()) else {
                continue;
            };
            match *next {
                "MODE" => found.extend(mode_names()),
                next if next.starts_with(char::is_uppercase) => {}
                next => found.push(next.to_owned()),
            }
        }
        found.retain(|next| next.starts_with(word));
        found.dedup();
        (begins, found)
    }
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(Self::completions(&line[..position]))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}

impl Validator for Words {}

impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_commands_are_understood() {
        for (command, _) in COMMANDS {
            let filled = command.replace("MODE", "io").replace("L1,L2", "64,100").replace('N', "3");
            assert!(parse(&filled).is_ok(), "{filled}");
        }
        assert_eq!(parse(" start  tx_first 7 "), Ok(Command::Start { tx_first: 7 }));
        assert_eq!(parse("show port stats 1"), Ok(Command::ShowStatistics(Which::One(1))));
        assert_eq!(parse("set fwd macswap"), Ok(Command::SetMode(Mode::Macswap)));
        assert_eq!(parse("set txpkts 64,9"), Ok(Command::SetSegments(SegmentLengths(vec![64, 9]))));
    }

    #[test]
    fn other_words_are_answered() {
        for line in [
            "begin",
            "start tx_first 0",
            "show port stats x",
            "set fwd csum",
            "set burst 513",
            "set txpkts 1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("set fwd csum").unwrap_err().contains("icmpecho"));
    }

    #[test]
    fn words_are_completed() {
        let of = |line: &str| Words::completions(line).1.join(" ");
        assert_eq!(of("s"), "start stop show set");
        assert_eq!(of("show port "), "stats xstats info");
        assert_eq!(of("show port x"), "xstats");
        assert_eq!(of("set fwd mac"), "mac macswap");
        assert_eq!(of("set burst "), "");
        assert_eq!(of("nothing "), "");
        assert_eq!(Words::completions("set f").0, 4);
    }
}
