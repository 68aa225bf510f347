//! RPM package files: what stands in their headers, and whether their bytes are what those say.
//! Signatures are taken out here and judged by [`super::gpgv`].
//!
//! ```text
//! lead 96 B | signature header, padded to 8 | main header | payload
//! ```
//! The `rpm` crate would bring 50 others and a second generation of sha2 for this one table.

pub mod facts;
pub mod header;
pub mod inspect;
pub mod query;
