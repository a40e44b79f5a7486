//! The catalogue of event schemas.
