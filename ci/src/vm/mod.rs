//! `cargo xtask vm`.
pub mod image;
pub mod qemu;
