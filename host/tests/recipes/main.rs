//! labhost as its users meet it: the real program runs the repository's recipes, and each test says what must hold.
//!
//! Every lab lies in a temporary folder, is taken away when its test ends, and has one or two instances, so that the
//! tests fit on a small machine. No test measures anything.

mod commands;
mod exposure;
mod interrupt;
mod killed;
mod lost;
mod mistakes;
mod newcomer;
mod objectives;
mod policies;
mod restart;
mod shared;
mod shootout;
mod support;
mod topology;
mod unreachable;
mod upload;
