//! The local provider as its users meet it: through the library, the real agent process and OpenSSH's client.

mod lab;
mod life;
mod services;
mod ssh;
mod wiped;
