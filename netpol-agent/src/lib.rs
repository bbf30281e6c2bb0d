//! Places for the parts that read each other.
