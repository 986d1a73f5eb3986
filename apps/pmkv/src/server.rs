//! What all clients of a core have in common beside the keys: options, users, and counters.

use crate::users::Users;

/// The version of Redis whose commands and messages these are.
pub const REDIS_VERSION: &str = "7.0.15";

/// Options and counters.
#[derive(Debug)]
pub struct Server {
    /// Options.
    pub config: Config,
    /// Counters.
    pub stats: Stats,
    /// When it was started, in ms since 1970.
    pub started_ms: u64,
}

/// What bounds the server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Clients at a time.
    pub max_clients: u32,
    /// Bytes of DRAM that keys may take; 0 for any.
    pub max_memory_bytes: usize,
    /// The longest value.
    pub max_value_bytes: u64,
    /// Bytes of DRAM that requests which are not whole may take, of all clients, and replies that are not sent.
    pub max_pending_bytes: usize,
    /// Who may do what.
    pub users: Users,
    /// The persistence domain, for INFO.
    pub domain: String,
    /// The TCP port, for INFO.
    pub port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_clients: 10_000,
            max_memory_bytes: 0,
            max_value_bytes: 512 << 20,
            max_pending_bytes: 256 << 20,
            users: Users::default(),
            domain: String::new(),
            port: 6379,
        }
    }
}

impl Config {
    /// Who a client is that has not said so; none if it has to say.
    pub fn unnamed_user(&self) -> Option<String> {
        self.users.is_open().then(|| "default".to_owned())
    }

    /// As CONFIG GET has them.
    pub fn values(&self) -> Vec<(&'static str, String)> {
        vec![
            ("appendfsync", "always".into()),
            ("appendonly", "yes".into()),
            ("databases", "1".into()),
            ("maxclients", self.max_clients.to_string()),
            ("maxmemory", self.max_memory_bytes.to_string()),
            ("maxmemory-policy", "noeviction".into()),
            ("port", self.port.to_string()),
            ("proto-max-bulk-len", self.max_value_bytes.to_string()),
            ("save", String::new()),
            ("timeout", "0".into()),
        ]
    }
}

/// What was done since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Connections that came.
    pub connections: u64,
    /// Connections refused, as there were too many.
    pub rejected: u64,
    /// Connections ended whose requests or replies took too much memory.
    pub cut_off: u64,
    /// Commands.
    pub commands: u64,
    /// Commands refused.
    pub errors: u64,
    /// Damaged records that were passed over when the store was opened.
    pub damaged_records: u64,
}
