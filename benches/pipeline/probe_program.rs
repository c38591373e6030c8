//! The probed program: says when its `main` was entered; given another FIFO, it stays until that is opened for writing. Compiled by `rustc` alone, see `probe.rs`.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    let entered = SystemTime::now();
    let fifo = std::env::args_os().nth(1).expect("the path of a FIFO");
    let nanos = entered
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_nanos() as u64;
    let mut fifo = std::fs::OpenOptions::new()
        .write(true)
        .open(fifo)
        .expect("the harness's FIFO");
    fifo.write_all(&nanos.to_ne_bytes()).expect("room in the FIFO");
    if let Some(gate) = std::env::args_os().nth(2) {
        std::fs::File::open(gate).expect("the harness's gate");
    }
}
