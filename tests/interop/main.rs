//! `pmlog` against the Linux kernel's TCP and real clients.
