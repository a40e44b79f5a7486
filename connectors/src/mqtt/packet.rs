//! Packets of both versions of the protocol in one form.

use std::fmt;

use bytes::{Buf as _, Bytes, BytesMut};
use rumqttc::mqttbytes::{self, v4};
use rumqttc::v5::mqttbytes as mqttbytes5;
use rumqttc::v5::mqttbytes::v5;
use tokio_util::codec::{Decoder, Encoder};

use super::settings::{Qos, Settings, Version};
use crate::sources::net::lines::BROKEN;

/// What a broker sends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Incoming {
    /// The answer to CONNECT.
    Connected(Connected),
    /// The broker closes the connection, for this reason.
    Disconnect(String),
    /// A message.
    Publish(Publish),
    /// QoS 1: a message was taken, or was not.
    PubAck(u16, Option<Refusal>),
    /// QoS 2: the last step.
    PubComp(u16),
    /// QoS 2: a message was taken, or was not.
    PubRec(u16, Option<Refusal>),
    /// QoS 2: the broker will not send the message again.
    PubRel(u16),
    /// For each filter the quality of service granted, or why there is none.
    Subscribed(Vec<Result<Qos, String>>),
    /// What needs nothing done.
    Other,
}

/// What a broker says when a client connects.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Connected {
    /// Why it refuses.
    pub(crate) refused: Option<String>,
    /// Whether it knew the client.
    pub(crate) session_present: bool,
    /// How many messages may wait for its acknowledgement.
    pub(crate) receive_max: u16,
    /// The largest packet that it takes.
    pub(crate) packet_max: Option<u32>,
    /// How often it wants to hear something, in seconds, instead of what the client said.
    pub(crate) keep_alive: Option<u16>,
}

/// Why a broker did not take a message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    /// In words.
    pub(crate) reason: String,
    /// Whether it may take the same message later.
    pub(crate) passes: bool,
}

/// A message, in either direction.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Publish {
    pub(crate) topic: Bytes,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Zero with QoS 0.
    pub(crate) id: u16,
    /// Sent before.
    pub(crate) dup: bool,
    pub(crate) content_type: Option<String>,
    pub(crate) user_properties: Vec<(String, String)>,
    /// The packet was too large: this is its beginning, and ends in [`BROKEN`].
    pub(crate) cut: bool,
}

/// What a client sends.
#[derive(Clone, Debug)]
pub(crate) enum Outgoing {
    Connect(Box<Settings>),
    Disconnect,
    Ping,
    PubAck(u16),
    PubComp(u16),
    Publish(Publish),
    PubRec(u16),
    PubRel(u16),
    Subscribe { id: u16, filters: Vec<(String, Qos)> },
    Unsubscribe { id: u16, filters: Vec<String> },
}

/// Bytes that are no packet, or a packet that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PacketError(pub(crate) String);

impl From<std::io::Error> for PacketError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

fn wrong(error: impl fmt::Display) -> PacketError {
    PacketError(error.to_string())
}

/// Packets of one connection.
#[derive(Debug)]
pub(crate) struct Codec {
    version: Version,
    packet_max: u32,
    /// How much of a message that was too large is still to come.
    n_skip: usize,
}

impl Codec {
    pub(crate) fn new(version: Version, packet_max: u32) -> Self {
        Self { version, packet_max, n_skip: 0 }
    }

    /// Whether a message that is too large begins here: the length of its header, and of all of it.
    fn too_large(&self, src: &BytesMut) -> Option<(usize, usize)> {
        let (mut len, mut n_header) = (0, 1);
        for (idx, byte) in src.iter().skip(1).take(4).enumerate() {
            len |= usize::from(byte & 0x7f) << (7 * idx);
            n_header += 1;
            if byte & 0x80 == 0 {
                let is_publish = src[0] >> 4 == 3;
                return (is_publish && self.packet_max as usize <= len).then_some((n_header, n_header + len));
            }
        }
        None
    }

    /// The beginning of a message that is too large, once there is enough of it. With MQTT 5 the broker was told the
    /// limit and must not send it.
    fn cut(&mut self, src: &mut BytesMut) -> Result<Option<Option<Incoming>>, PacketError> {
        let Some((n_header, total)) = self.too_large(src).filter(|_| self.version == Version::V311) else {
            return Ok(None);
        };
        let n_kept = self.packet_max as usize;
        if src.len() < n_kept {
            src.reserve(n_kept - src.len());
            return Ok(Some(None));
        }
        let flags = src[0];
        let mut kept = src.split_to(n_kept);
        self.n_skip = total - n_kept;
        kept.advance(n_header);
        let qos = qos_of((flags >> 1) & 3).ok_or_else(|| wrong("a message with QoS 3"))?;
        let n_topic = kept.try_get_u16().map_err(wrong)?;
        let n_topic = usize::from(n_topic);
        if kept.len() < n_topic + 2 {
            return Err(wrong("the topic of a message is longer than `max_packet_bytes`"));
        }
        let topic = kept.split_to(n_topic).freeze();
        let id = if qos == Qos::AtMostOnce { 0 } else { kept.try_get_u16().map_err(wrong)? };
        kept.extend_from_slice(&[BROKEN]);
        Ok(Some(Some(Incoming::Publish(Publish {
            topic,
            payload: kept.freeze(),
            qos,
            retain: flags & 1 != 0,
            id,
            dup: flags & 8 != 0,
            cut: true,
            ..Publish::default()
        }))))
    }
}

fn qos_of(number: u8) -> Option<Qos> {
    [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce].get(usize::from(number)).copied()
}

impl Decoder for Codec {
    type Item = Incoming;
    type Error = PacketError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Incoming>, PacketError> {
        let n = self.n_skip.min(src.len());
        src.advance(n);
        self.n_skip -= n;
        if 0 < self.n_skip {
            return Ok(None);
        }
        if let Some(cut) = self.cut(src)? {
            return Ok(cut);
        }
        match self.version {
            Version::V311 => match v4::Packet::read(src, self.packet_max as usize) {
                Ok(packet) => Ok(Some(of_v4(packet))),
                Err(mqttbytes::Error::InsufficientBytes(n)) => {
                    src.reserve(n);
                    Ok(None)
                }
                Err(error) => Err(wrong(error)),
            },
            Version::V5 => match v5::Packet::read(src, Some(self.packet_max)) {
                Ok(packet) => Ok(Some(of_v5(packet))),
                Err(mqttbytes5::Error::InsufficientBytes(n)) => {
                    src.reserve(n);
                    Ok(None)
                }
                Err(error) => Err(wrong(error)),
            },
        }
    }
}

fn of_v4(packet: v4::Packet) -> Incoming {
    match packet {
        v4::Packet::ConnAck(ack) => Incoming::Connected(Connected {
            refused: (ack.code != v4::ConnectReturnCode::Success).then(|| format!("{:?}", ack.code)),
            session_present: ack.session_present,
            receive_max: u16::MAX,
            packet_max: None,
            keep_alive: None,
        }),
        v4::Packet::Publish(publish) => Incoming::Publish(Publish {
            topic: Bytes::from(publish.topic),
            payload: publish.payload,
            qos: qos_of(publish.qos as u8).unwrap_or_default(),
            retain: publish.retain,
            id: publish.pkid,
            dup: publish.dup,
            ..Publish::default()
        }),
        v4::Packet::PubAck(ack) => Incoming::PubAck(ack.pkid, None),
        v4::Packet::PubRec(ack) => Incoming::PubRec(ack.pkid, None),
        v4::Packet::PubRel(ack) => Incoming::PubRel(ack.pkid),
        v4::Packet::PubComp(ack) => Incoming::PubComp(ack.pkid),
        v4::Packet::SubAck(ack) => Incoming::Subscribed(
            ack.return_codes
                .into_iter()
                .map(|code| match code {
                    v4::SubscribeReasonCode::Success(qos) => Ok(qos_of(qos as u8).unwrap_or_default()),
                    v4::SubscribeReasonCode::Failure => Err("refused".to_owned()),
                })
                .collect(),
        ),
        v4::Packet::Disconnect => Incoming::Disconnect("no reason".into()),
        _ => Incoming::Other,
    }
}

fn of_v5(packet: v5::Packet) -> Incoming {
    match packet {
        v5::Packet::ConnAck(ack) => {
            let properties = ack.properties.as_ref();
            let why = properties.and_then(|p| p.reason_string.clone()).unwrap_or_default();
            let refused = ack.code != v5::ConnectReturnCode::Success;
            Incoming::Connected(Connected {
                refused: refused.then(|| format!("{:?} {why}", ack.code).trim().to_owned()),
                session_present: ack.session_present,
                receive_max: properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
                packet_max: properties.and_then(|p| p.max_packet_size),
                keep_alive: properties.and_then(|p| p.server_keep_alive),
            })
        }
        v5::Packet::Publish(publish) => {
            let properties = publish.properties.unwrap_or_default();
            Incoming::Publish(Publish {
                topic: publish.topic,
                payload: publish.payload,
                qos: qos_of(publish.qos as u8).unwrap_or_default(),
                retain: publish.retain,
                id: publish.pkid,
                dup: publish.dup,
                content_type: properties.content_type,
                user_properties: properties.user_properties,
                cut: false,
            })
        }
        v5::Packet::PubAck(ack) => {
            use v5::PubAckReason::{
                ImplementationSpecificError, NoMatchingSubscribers, QuotaExceeded, Success, UnspecifiedError,
            };
            let passes = matches!(ack.reason, ImplementationSpecificError | QuotaExceeded | UnspecifiedError);
            let refused = !matches!(ack.reason, Success | NoMatchingSubscribers);
            let reason = format!("{:?}", ack.reason);
            Incoming::PubAck(ack.pkid, refused.then_some(Refusal { reason, passes }))
        }
        v5::Packet::PubRec(ack) => {
            use v5::PubRecReason::{
                ImplementationSpecificError, NoMatchingSubscribers, QuotaExceeded, Success, UnspecifiedError,
            };
            let passes = matches!(ack.reason, ImplementationSpecificError | QuotaExceeded | UnspecifiedError);
            let refused = !matches!(ack.reason, Success | NoMatchingSubscribers);
            let reason = format!("{:?}", ack.reason);
            Incoming::PubRec(ack.pkid, refused.then_some(Refusal { reason, passes }))
        }
        v5::Packet::PubRel(ack) => Incoming::PubRel(ack.pkid),
        v5::Packet::PubComp(ack) => Incoming::PubComp(ack.pkid),
        v5::Packet::SubAck(ack) => Incoming::Subscribed(
            ack.return_codes
                .into_iter()
                .map(|code| match code {
                    v5::SubscribeReasonCode::Success(qos) => Ok(qos_of(qos as u8).unwrap_or_default()),
                    other => Err(format!("{other:?}")),
                })
                .collect(),
        ),
        v5::Packet::Disconnect(disconnect) => Incoming::Disconnect(format!("{:?}", disconnect.reason_code)),
        _ => Incoming::Other,
    }
}

impl Encoder<Outgoing> for Codec {
    type Error = PacketError;

    fn encode(&mut self, packet: Outgoing, dst: &mut BytesMut) -> Result<(), PacketError> {
        match self.version {
            Version::V311 => to_v4(packet).write(dst, usize::MAX).map_err(wrong)?,
            Version::V5 => to_v5(packet).write(dst, None).map_err(wrong)?,
        };
        Ok(())
    }
}

fn to_v4(packet: Outgoing) -> v4::Packet {
    let qos = |qos: Qos| mqttbytes::qos(qos as u8).unwrap_or(mqttbytes::QoS::AtMostOnce);
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    match packet {
        Outgoing::Connect(settings) => {
            let mut connect = v4::Connect::new(settings.client_id.as_str());
            connect.keep_alive = u16::try_from(settings.keep_alive.as_secs()).unwrap_or(u16::MAX);
            connect.clean_session = settings.clean;
            if let Some((user, password)) = &settings.login {
                connect.set_login(user.as_str(), password.expose());
            }
            connect.last_will = settings.last_will.as_ref().map(|will| {
                v4::LastWill::new(will.topic.as_str(), will.payload.as_bytes(), qos(will.qos), will.retain)
            });
            v4::Packet::Connect(connect)
        }
        Outgoing::Disconnect => v4::Packet::Disconnect,
        Outgoing::Ping => v4::Packet::PingReq,
        Outgoing::PubAck(id) => v4::Packet::PubAck(v4::PubAck::new(id)),
        Outgoing::PubComp(id) => v4::Packet::PubComp(v4::PubComp::new(id)),
        Outgoing::PubRec(id) => v4::Packet::PubRec(v4::PubRec::new(id)),
        Outgoing::PubRel(id) => v4::Packet::PubRel(v4::PubRel::new(id)),
        Outgoing::Publish(publish) => {
            let (topic, qos) = (text(&publish.topic), qos(publish.qos));
            let mut packet = v4::Publish::from_bytes(topic, qos, publish.payload);
            (packet.pkid, packet.retain) = (publish.id, publish.retain);
            v4::Packet::Publish(packet)
        }
        Outgoing::Subscribe { id, filters } => {
            let filters = filters.into_iter().map(|(path, q)| v4::SubscribeFilter { path, qos: qos(q) });
            v4::Packet::Subscribe(v4::Subscribe { pkid: id, filters: filters.collect() })
        }
        Outgoing::Unsubscribe { id, filters } => {
            v4::Packet::Unsubscribe(v4::Unsubscribe { pkid: id, topics: filters })
        }
    }
}

fn to_v5(packet: Outgoing) -> v5::Packet {
    let qos = |qos: Qos| mqttbytes5::qos(qos as u8).unwrap_or_default();
    match packet {
        Outgoing::Connect(settings) => {
            let mut properties = v5::ConnectProperties::new();
            let expiry = u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX);
            properties.session_expiry_interval = Some(expiry);
            properties.receive_maximum = Some(settings.receive_max);
            properties.max_packet_size = Some(settings.packet_max);
            let connect = v5::Connect {
                keep_alive: u16::try_from(settings.keep_alive.as_secs()).unwrap_or(u16::MAX),
                client_id: settings.client_id.clone(),
                clean_start: settings.clean,
                properties: Some(properties),
            };
            let will = settings.last_will.as_ref().map(|w| {
                v5::LastWill::new(w.topic.as_str(), w.payload.as_bytes(), qos(w.qos), w.retain, None)
            });
            let login = settings.login.as_ref().map(|(user, password)| v5::Login {
                username: user.clone(),
                password: password.expose().to_owned(),
            });
            v5::Packet::Connect(connect, will, login)
        }
        Outgoing::Disconnect => {
            v5::Packet::Disconnect(v5::Disconnect::new(v5::DisconnectReasonCode::NormalDisconnection))
        }
        Outgoing::Ping => v5::Packet::PingReq(v5::PingReq),
        Outgoing::PubAck(id) => v5::Packet::PubAck(v5::PubAck::new(id, None)),
        Outgoing::PubComp(id) => v5::Packet::PubComp(v5::PubComp::new(id, None)),
        Outgoing::PubRec(id) => v5::Packet::PubRec(v5::PubRec::new(id, None)),
        Outgoing::PubRel(id) => v5::Packet::PubRel(v5::PubRel::new(id, None)),
        Outgoing::Publish(publish) => {
            let properties = v5::PublishProperties {
                content_type: publish.content_type,
                user_properties: publish.user_properties,
                ..v5::PublishProperties::default()
            };
            v5::Packet::Publish(v5::Publish {
                dup: false,
                qos: qos(publish.qos),
                retain: publish.retain,
                topic: publish.topic,
                pkid: publish.id,
                payload: publish.payload,
                properties: Some(properties),
            })
        }
        Outgoing::Subscribe { id, filters } => {
            let filters = filters.into_iter().map(|(path, q)| v5::Filter::new(path, qos(q)));
            v5::Packet::Subscribe(v5::Subscribe { pkid: id, filters: filters.collect(), properties: None })
        }
        Outgoing::Unsubscribe { id, filters } => {
            v5::Packet::Unsubscribe(v5::Unsubscribe { pkid: id, filters, properties: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(payload: &str) -> BytesMut {
        let mut packet = v4::Publish::new("a/b", mqttbytes::QoS::AtLeastOnce, payload.as_bytes());
        packet.pkid = 7;
        let mut bytes = BytesMut::new();
        v4::Packet::Publish(packet).write(&mut bytes, usize::MAX).unwrap();
        bytes
    }

    #[test]
    fn a_message_that_is_too_large_is_cut_however_it_arrives_and_the_next_is_whole() {
        let mut bytes = publish(&"x".repeat(5_000));
        bytes.extend_from_slice(&publish("next"));
        for step in [1, 7, 999, 4_000, 6_000] {
            let mut codec = Codec::new(Version::V311, 1_000);
            let (mut src, mut found) = (BytesMut::new(), Vec::new());
            for part in bytes.chunks(step) {
                src.extend_from_slice(part);
                while let Some(packet) = codec.decode(&mut src).unwrap() {
                    let Incoming::Publish(publish) = packet else { panic!("{packet:?}") };
                    found.push((publish.cut, publish.id, publish.payload.len(), publish.topic));
                }
                assert!(src.len() < 8_000, "what is too large is not gathered");
            }
            assert_eq!(found.len(), 2, "in steps of {step}");
            assert!(found[0].0 && found[0].2 <= 1_000 && !found[1].0, "{found:?}");
            assert_eq!((found[0].1, &*found[0].3, found[1].2), (7, &b"a/b"[..], 4));
        }
    }

    #[test]
    fn bytes_that_are_no_packets_are_errors() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            b"\x30\xff\xff\xff\xff\x7f",
            b"\x30\x02\xff\xff",
            b"\x20\x01\x00",
        ] {
            for version in [Version::V311, Version::V5] {
                let mut src = BytesMut::from(bytes);
                let found = Codec::new(version, 1_000).decode(&mut src);
                assert!(!matches!(found, Ok(Some(_))), "{bytes:?} {found:?}");
            }
        }
    }
}
