//! From Protobuf to JSON: names as in the `.proto` file, numbers as numbers, times as RFC 3339 text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FileDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _,
    Value,
};
use serde_json::{Map, Value as Json};

/// The name that the file of a schema gets; those that it refers to have theirs.
const FILE: &str = "logdrive-schema.proto";
/// How deep messages may be nested in what is written: as deep as the `json` decoder reads.
const DEPTH_MAX: usize = 64;

/// The file of a schema; a message says which of its types it is.
#[derive(Debug)]
pub(super) struct Protobuf(FileDescriptor);

impl Protobuf {
    /// From serialized descriptors: those that the schema refers to, by name, and its own.
    pub(super) fn new(parts: &[(String, Vec<u8>)], schema: &[u8]) -> Option<Self> {
        // It knows the types that come with Protobuf.
        let mut pool = DescriptorPool::global();
        for (name, bytes) in
            parts.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).chain([(FILE, schema)])
        {
            if pool.get_file_by_name(name).is_none() {
                pool.decode_file_descriptor_proto(named(name, bytes).as_slice()).ok()?;
            }
        }
        pool.get_file_by_name(FILE).map(Self)
    }

    /// The message as JSON; `None` if it is not of the schema.
    pub(super) fn read(&self, mut body: &[u8]) -> Option<Json> {
        let of = self.type_of(&mut body)?;
        let message = DynamicMessage::decode(of, body).ok()?;
        object(&message, 0)
    }

    /// Which type a message is: a list of places, from the file inwards, that is `0` alone if it is the first type.
    fn type_of(&self, body: &mut &[u8]) -> Option<MessageDescriptor> {
        let n_places = usize::try_from(zigzag(body)?).ok().filter(|n| *n <= DEPTH_MAX)?;
        if n_places == 0 {
            return self.0.messages().next();
        }
        let mut of: Option<MessageDescriptor> = None;
        for _ in 0..n_places {
            let place = usize::try_from(zigzag(body)?).ok()?;
            of = match of {
                None => self.0.messages().nth(place),
                Some(outer) => outer.child_messages().nth(place),
            };
            of.as_ref()?;
        }
        of
    }
}

/// A descriptor with another name: of a field that is there twice, the last one counts.
fn named(name: &str, descriptor: &[u8]) -> Vec<u8> {
    let mut bytes = descriptor.to_vec();
    prost::encoding::string::encode(1, &name.to_owned(), &mut bytes);
    bytes
}

fn zigzag(body: &mut &[u8]) -> Option<i64> {
    let n = prost::encoding::decode_varint(body).ok()?;
    Some((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
}

fn object(message: &DynamicMessage, depth: usize) -> Option<Json> {
    if DEPTH_MAX <= depth {
        return None;
    }
    let of = message.descriptor();
    let part = |name: &str| message.get_field_by_name(name);
    match of.full_name() {
        "google.protobuf.Timestamp" => {
            let (seconds, nanos) = (part("seconds")?.as_i64()?, part("nanos")?.as_i32()?);
            return Some(Timestamp::new(seconds, nanos).ok()?.to_string().into());
        }
        name if name.starts_with("google.protobuf.") && name.ends_with("Value") && of.fields().len() == 1 => {
            // A scalar that can be missing.
            let field = of.fields().next()?;
            return json(&message.get_field(&field), &field.kind(), depth);
        }
        _ => {}
    }
    let mut fields = Map::new();
    for field in of.fields().filter(|field| !field.supports_presence() || message.has_field(field)) {
        let value = message.get_field(&field);
        fields.insert(field.name().to_owned(), json(&value, &field.kind(), depth + 1)?);
    }
    Some(Json::Object(fields))
}

fn json(value: &Value, kind: &Kind, depth: usize) -> Option<Json> {
    Some(match value {
        Value::Bool(b) => (*b).into(),
        Value::I32(n) => (*n).into(),
        Value::I64(n) => (*n).into(),
        Value::U32(n) => (*n).into(),
        Value::U64(n) => (*n).into(),
        // What is no number in JSON is null.
        Value::F32(n) => (*n).into(),
        Value::F64(n) => (*n).into(),
        Value::String(text) => text.as_str().into(),
        Value::Bytes(bytes) => STANDARD.encode(bytes).into(),
        Value::EnumNumber(n) => {
            let name =
                kind.as_enum().and_then(|kind| kind.get_value(*n)).map(|value| value.name().to_owned());
            name.map_or_else(|| (*n).into(), Into::into)
        }
        Value::Message(message) => object(message, depth)?,
        Value::List(items) => {
            items.iter().map(|item| json(item, kind, depth)).collect::<Option<Vec<_>>>()?.into()
        }
        Value::Map(entries) => {
            let of = kind.as_message()?.map_entry_value_field().kind();
            let entry = |(key, value): (&MapKey, &Value)| Some((key_text(key), json(value, &of, depth)?));
            Json::Object(entries.iter().map(entry).collect::<Option<Map<_, _>>>()?)
        }
    })
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(b) => b.to_string(),
        MapKey::I32(n) => n.to_string(),
        MapKey::I64(n) => n.to_string(),
        MapKey::U32(n) => n.to_string(),
        MapKey::U64(n) => n.to_string(),
        MapKey::String(text) => text.clone(),
    }
}
