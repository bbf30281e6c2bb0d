//! The verdict core.
#![no_std]
