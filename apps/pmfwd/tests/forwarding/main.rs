//! The program from outside: what it forwards, says, and leaves behind.

mod console;
mod log;
mod modes;
mod peer;
mod program;
mod reports;
