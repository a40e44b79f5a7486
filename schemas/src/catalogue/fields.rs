//! The list of fields that the catalogue derives from.

use crate::schema::FieldType;

/// One field of the catalogue.
pub(super) struct CatalogueField {
    /// Its name; `object.member` for a member of an object.
    pub(super) name: &'static str,
    /// Its type.
    pub(super) kind: Kind,
    /// Which types of event have it.
    pub(super) of: u8,
    /// What it means, in one line.
    pub(super) about: &'static str,
}

/// The scalar types that the catalogue uses.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Boolean,
    Float64,
    Int64,
    Ip,
    String,
    Timestamp,
}

impl Kind {
    pub(super) fn field_type(self) -> FieldType {
        match self {
            Self::Boolean => FieldType::Boolean,
            Self::Float64 => FieldType::Float64,
            Self::Int64 => FieldType::Int64,
            Self::Ip => FieldType::Ip,
            Self::String => FieldType::String,
            Self::Timestamp => FieldType::Timestamp,
        }
    }
}

const T: u8 = 1;
const E: u8 = 1 << 1;
const B: u8 = 1 << 2;
const P: u8 = 1 << 3;
const S: u8 = 1 << 4;
const M: u8 = 1 << 5;
const ALL: u8 = T | E | B | P | S | M;

/// The bit of a schema's name; all bits for `ecommerce`.
pub(super) fn mask(name: &str) -> Option<u8> {
    Some(match name {
        "ecommerce" => ALL,
        "transaction" => T,
        "error" => E,
        "behavior" => B,
        "performance" => P,
        "security" => S,
        "metric" => M,
        _ => return None,
    })
}

macro_rules! fields {
    ($($name:literal $kind:ident $of:expr, $about:literal;)*) => {
        /// Every field, in the order in which columns and mappings list them.
        pub(super) const FIELDS: &[CatalogueField] =
            &[$(CatalogueField { name: $name, kind: Kind::$kind, of: $of, about: $about },)*];
    };
}

fields! {
    "@timestamp" Timestamp ALL, "When the event happened.";
    "id" String ALL, "The event's own identifier, if its maker gave it one.";
    "type" String ALL, "Which type of event: transaction, error, behavior, performance, security or metric.";
    "source" String ALL, "The application that wrote the event.";
    "tenant" String ALL, "The shop that the event belongs to.";
    "level" String ALL, "How severe: DEBUG, INFO, WARN, ERROR or FATAL.";
    "message" String ALL, "The event in words.";
    "service" String ALL, "The service that wrote the event.";
    "host" String ALL, "The machine that wrote the event.";
    "env" String ALL, "The environment, such as prod or staging.";
    "trace_id" String ALL, "The distributed trace that the event is part of.";
    "span_id" String ALL, "The span within the trace.";
    "event.kind" String ALL, "ECS: event, alert, metric or state.";
    "event.category" String ALL, "ECS: the category, such as authentication or web.";
    "event.action" String ALL, "ECS: what was done, such as login or permission_change.";
    "event.code" String ALL, "ECS: the application's own code for this kind of event.";
    "outcome" String T | E | B | P | S, "Whether it succeeded: success, failure or unknown.";
    "ip" Ip T | E | B | P | S, "The address that the request came from.";
    "country" String T | E | B | P | S, "The country as the application knows it, ISO 3166 alpha-2.";
    "session_id" String T | E | B | P | S, "The visitor's session.";
    "user_id" String T | E | B | P | S, "The account.";
    "customer_id" String T | E | B | S, "The customer; one customer may have several accounts.";
    "device_id" String T | E | B | P | S, "The device, as a fingerprint of the client knows it.";
    "user_agent" String T | E | B | P | S, "The client's User-Agent header.";
    "url" String E | B | P | S | T, "The path and query of the request.";
    "method" String E | B | P | S | T, "The HTTP method.";
    "status" Int64 E | B | P | S | T, "The HTTP status of the answer.";
    "latency_ms" Float64 E | B | P | S | T, "How long the answer took, in milliseconds.";
    "amount" Float64 T, "The money moved, in units of `currency`.";
    "currency" String T, "The currency, ISO 4217.";
    "order_id" String T | B, "The order.";
    "card_id" String T, "The card as a token that stands for it, never its number.";
    "payment.method" String T, "How it is paid: card, paypal, transfer or wallet.";
    "payment.status" String T, "How the payment ended: approved, declined, refunded or pending.";
    "payment.card_fingerprint" String T, "A keyed hash of the card number.";
    "payment.bin" String T, "The card number's first six digits: who issued the card.";
    "payment.last_four" String T, "The card number's last four digits.";
    "merchant_id" String T, "Who is paid.";
    "terminal_id" String T, "The terminal or payment page that took the payment.";
    "product_id" String T | B, "The product.";
    "quantity" Int64 T | B, "How many of the product.";
    "action" String T | B | S, "What was done: view, search, add_to_cart, purchase, refund, login and so on.";
    "page" String B, "The page that was shown.";
    "referrer" String B, "Where the visitor came from.";
    "funnel_step" Int64 B, "How far on the way to a purchase: 1 is the first page, 7 the confirmation.";
    "duration_ms" Float64 B | P, "How long it lasted, in milliseconds.";
    "endpoint" String P | E, "The route that answered, without its parameters.";
    "bytes" Int64 P, "The size of the answer in bytes.";
    "cache_hit" Boolean P, "Whether the answer came from a cache.";
    "cpu" Float64 P, "The share of its CPU that the service used, 0 to 1.";
    "memory" Float64 P, "The share of its memory that the service used, 0 to 1.";
    "error.type" String E, "The class of the error.";
    "error.message" String E, "The error in words.";
    "error.stack_trace" String E, "Where in the code it happened.";
    "reason" String S | T, "Why it was refused.";
    "role" String S, "The role under which the user acted.";
    "name" String M, "The name of the metric.";
    "value" Float64 M, "The value of the metric.";
    "unit" String M, "The unit of the value.";
    "count" Int64 M, "How many measurements the value stands for.";
    "min" Float64 M, "The smallest of the measurements.";
    "max" Float64 M, "The largest of the measurements.";
}
