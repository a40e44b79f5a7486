//! What the source and the sink `mqtt` share: settings, packets of both versions, and connections.
//!
//! The packets are those of rumqttc; its event loop is not used. That one forgets at a reconnection which QoS 2
//! messages it has confirmed, and then drops the connection at each PUBREL of a resumed session; it writes each
//! acknowledgement on its own; and a dropped `poll` can lose a packet.

pub(crate) mod connection;
pub(crate) mod packet;
pub mod settings;

pub use crate::client_tls::Tls;
pub use settings::{Endpoint, LastWill, Qos, Version};
