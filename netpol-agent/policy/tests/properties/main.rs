//! Properties of the pure core over random clusters. `NETPOL_CASES` (100) scales them all; the nightly size is 20000.
mod corners;
mod run;
