//! The proof of the TCP/IP core: hosts on a simulated link, in virtual time.

mod attacks;
mod closing;
mod cores;
mod data;
mod durable;
mod extensions;
mod floods;
mod fragments;
mod garbage;
mod groups;
mod handshake;
mod link;
mod listen;
mod moving;
mod neighbours;
mod ours;
mod places;
mod reassembly;
mod scale;
mod script;
mod send_room;
mod talk;
mod theirs;
mod transfer;
mod window;
mod wire;
