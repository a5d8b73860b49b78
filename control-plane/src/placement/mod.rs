//! Placement: which worker a session runs on.
