//! Writes the events of a session, by type.

use super::json::Object;
use super::shop::{Fraud, Moment, Session, Shop, around_one, below, mix, mix2, unit};
use super::world::{CITIES, FAILURES, PAGES, REFERRERS, ROUTES, Route};

impl Shop {
    pub(super) fn payment(&self, session: &Session, moment: &Moment, is_refund: bool, out: &mut Object<'_>) {
        let lot = moment.lot;
        // At a till every payment is another customer's, while in a session at home it is one's own.
        let other;
        let customer = if session.is_till {
            other = self.customer(session.tenant, mix2(session.seed, 100 + moment.slot));
            &other
        } else {
            &session.customer
        };
        let many_cards = session.seed & 1 == 0;
        let card = match session.fraud {
            Some(Fraud::CardTesting) if many_cards => mix2(session.seed, 200 + moment.slot),
            Some(Fraud::CardTesting) => mix2(session.seed, 200),
            // Few have a second card.
            _ => mix2(customer.seed, 11 + u64::from(lot.is_multiple_of(12))),
        };
        let usual = customer.usual_cents;
        let cents = match session.fraud {
            Some(Fraud::CardTesting) => 50.0 + 250.0 * unit(lot),
            Some(Fraud::AccountTakeover) => usual * (3.0 + 5.0 * unit(lot)),
            Some(Fraud::BustOut) => usual * (3.0 + moment.slot as f64 * 0.5) * around_one(lot, 0.2),
            Some(Fraud::TerminalCompromise) => usual * (1.5 + 2.0 * unit(lot)),
            _ => usual * around_one(lot, 0.35),
        };
        let is_declined = !is_refund
            && match session.fraud {
                Some(Fraud::CardTesting) => lot % 10 < 8,
                Some(Fraud::BustOut | Fraud::RefundAbuse) => false,
                _ => lot % 100 < 3,
            };
        let (message, action, status) = match (is_refund, is_declined) {
            (true, _) => ("Payment refunded", "refund", "refunded"),
            (_, true) => ("Payment declined by the issuer", "purchase", "declined"),
            _ => ("Payment approved", "purchase", "approved"),
        };
        // A refund belongs to the payment before it.
        let order = mix2(session.seed, 300 + moment.slot - u64::from(is_refund && moment.slot > 0)) >> 24;
        let terminal = if session.is_till { mix2(session.seed, 12) % 40 } else { 0 };
        let method = if session.is_till || card % 10 < 7 { "card" } else { "wallet" };
        out.text(",\"type\":", "transaction").text(",\"source\":", "payments-api");
        out.text(",\"level\":", if is_declined { "WARN" } else { "INFO" }).text(",\"message\":", message);
        out.text(",\"action\":", action).numbered(",\"order_id\":", "o-", order);
        out.hundredths(",\"amount\":", (cents.max(1.0)) as u64);
        out.text(",\"currency\":", CITIES[customer.city].currency).hex(",\"card_id\":", "card-", &[card]);
        out.text(",\"payment\":{\"method\":", method).text(",\"status\":", status);
        out.hex(",\"card_fingerprint\":", "", &[mix(card)]);
        out.raw(",\"bin\":\"").padded(400_000 + mix2(card, 1) % 199_999, 6).raw("\"");
        out.raw(",\"last_four\":\"").padded(mix2(card, 2) % 10_000, 4).raw("\"}");
        out.numbered(",\"merchant_id\":", "m-", session.tenant as u64 + 1);
        out.numbered(",\"terminal_id\":", if session.is_till { "till-" } else { "web-" }, terminal);
        out.text(",\"outcome\":", if is_declined { "failure" } else { "success" });
        out.numbered(",\"customer_id\":", "c-", customer.number);
        visitor_and_device(session, out);
    }
}

/// Where the request comes from.
fn visitor(session: &Session, out: &mut Object<'_>) {
    let city = &CITIES[session.city];
    out.hex(",\"session_id\":", "", &[session.seed]);
    out.raw(",\"ip\":\"10.").padded(u64::from(city.network), 1).raw(".");
    out.padded(u64::from(session.address >> 8), 1).raw(".").padded(u64::from(session.address & 255), 1);
    out.text("\",\"country\":", city.iso);
}

/// Where the request comes from, and from which device.
fn visitor_and_device(session: &Session, out: &mut Object<'_>) {
    visitor(session, out);
    out.hex(",\"device_id\":", "d-", &[session.device]);
}

pub(super) fn page(session: &Session, moment: &Moment, step: u8, out: &mut Object<'_>) {
    let page = &PAGES[usize::from(step.clamp(1, 7)) - 1];
    let is_bot = session.fraud == Some(Fraud::BotScraping);
    let product = match is_bot {
        true => session.seed % 5_000 + moment.slot,
        // A few products are what everybody looks at.
        false => (unit(moment.lot) * unit(mix(moment.lot)) * 5_000.0) as u64,
    };
    let dwell = if is_bot { 40.0 } else { 14_000.0 };
    out.text(",\"type\":", "behavior").text(",\"source\":", "web-shop").text(",\"level\":", "INFO");
    out.text(",\"message\":", page.message).text(",\"action\":", page.action).text(",\"page\":", page.page);
    if page.of_product || is_bot {
        out.numbered(",\"product_id\":", "p-", product);
    }
    out.text(",\"referrer\":", REFERRERS[below(mix2(session.seed, 13), REFERRERS.len() as u64) as usize]);
    out.integer(",\"funnel_step\":", u64::from(step));
    out.integer(",\"duration_ms\":", (dwell * around_one(moment.lot, 0.8)) as u64);
    if !is_bot {
        out.numbered(",\"user_id\":", "u-", session.customer.number);
    }
    out.text(",\"user_agent\":", session.agent);
    visitor_and_device(session, out);
}

fn route_of(moment: &Moment) -> &'static Route {
    &ROUTES[below(mix2(moment.lot, 14), ROUTES.len() as u64) as usize]
}

fn traced(session: &Session, moment: &Moment, service: &str, out: &mut Object<'_>) {
    out.text(",\"service\":", service);
    out.raw(",\"host\":\"").raw(service).raw("-").padded(moment.lot % 4, 1).raw("\"");
    out.hex(",\"trace_id\":", "", &[mix2(session.seed, 15), mix2(session.seed, moment.slot)]);
    out.hex(",\"span_id\":", "", &[mix(moment.id)]);
}

pub(super) fn call(session: &Session, moment: &Moment, is_bad: bool, out: &mut Object<'_>) {
    let (lot, route) = (mix(moment.lot), route_of(moment));
    // One call in a hundred is slow, and all are while the service is failing.
    let slow = if moment.lot.is_multiple_of(100) { 15.0 } else { 1.0 } * if is_bad { 5.0 } else { 1.0 };
    let latency = f64::from(route.latency) * around_one(lot, 0.45) * slow;
    let is_hit = route.cacheable && lot % 10 < 7;
    let status = match lot % 1000 {
        0..4 => 500,
        4..16 => 404,
        16..40 => 304,
        _ => 200,
    };
    out.text(",\"type\":", "performance").text(",\"source\":", "gateway").text(",\"level\":", "DEBUG");
    out.text(",\"message\":", "Request answered").text(",\"endpoint\":", route.endpoint);
    out.text(",\"method\":", route.method).integer(",\"status\":", status);
    out.tenths(",\"latency_ms\":", if is_hit { latency / 8.0 } else { latency } as u64);
    out.integer(",\"bytes\":", (f64::from(route.bytes) * around_one(moment.lot, 0.4)) as u64);
    out.raw(",\"cache_hit\":").raw(if is_hit { "true" } else { "false" });
    out.hundredths(",\"cpu\":", 20 + below(lot, 45) + if is_bad { 30 } else { 0 });
    out.hundredths(",\"memory\":", 40 + below(mix(lot), 30));
    traced(session, moment, route.service, out);
    visitor(session, out);
}

pub(super) fn failure(session: &Session, moment: &Moment, out: &mut Object<'_>) {
    let route = route_of(moment);
    let (class, text, stack, status) = FAILURES[below(mix(moment.lot), FAILURES.len() as u64) as usize];
    out.text(",\"type\":", "error").text(",\"source\":", "gateway").text(",\"level\":", "ERROR");
    out.text(",\"message\":", "Request failed").text(",\"endpoint\":", route.endpoint);
    out.integer(",\"status\":", u64::from(status));
    out.text(",\"error\":{\"type\":", class).text(",\"message\":", text).text(",\"stack_trace\":", stack);
    out.raw("}");
    traced(session, moment, route.service, out);
    visitor(session, out);
}

pub(super) fn security(
    session: &Session,
    moment: &Moment,
    action: &str,
    succeeds: bool,
    out: &mut Object<'_>,
) {
    out.text(",\"type\":", "security").text(",\"source\":", "accounts");
    out.text(",\"level\":", if succeeds { "INFO" } else { "WARN" });
    let message = match (action, succeeds) {
        ("login", true) => "Login succeeded",
        ("login", false) => "Login failed",
        _ => "Account data changed",
    };
    out.text(",\"message\":", message).text(",\"action\":", action);
    out.text(",\"outcome\":", if succeeds { "success" } else { "failure" });
    if !succeeds {
        out.text(",\"reason\":", "wrong password");
    }
    out.text(",\"event\":{\"kind\":", "event").text(",\"category\":", "authentication");
    out.text(",\"action\":", action).raw("}");
    out.text(",\"service\":", "accounts").numbered(",\"host\":", "accounts-", moment.lot % 4);
    out.numbered(",\"user_id\":", "u-", session.customer.number).text(",\"role\":", "customer");
    out.text(",\"user_agent\":", session.agent);
    visitor_and_device(session, out);
}
