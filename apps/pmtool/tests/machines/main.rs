//! pmtool on the likeness of machines.

mod bind;
mod doctor;
mod machine;
