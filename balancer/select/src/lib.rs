//! Choice of a backend.
