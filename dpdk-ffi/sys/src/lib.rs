//! Bindings to the installed libdpdk 22.11, made by bindgen at build time.
//!
//! The declarations follow DPDK's own headers and documentation; its static inlines are compiled into
//! small functions, so each call of one is a call. The safe interface is the `dpdk` crate.
//!
//! DPDK's flags of 64 bits that fit into 32 come out of the macros as `u32` or even as `i32`: widen them
//! at the point of use.

#![allow(unsafe_code, missing_docs, unused_qualifications)]
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, unnecessary_transmutes)]
#![allow(unsafe_op_in_unsafe_fn)]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
