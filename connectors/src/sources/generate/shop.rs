//! The simulator: event number `index` as a pure function of the options.
//!
//! Nothing is remembered from event to event, so that a source resumes at any index with the same bytes, and yet
//! events belong together. Time is cut into *lanes*: in every round each lane emits one event, in an order shuffled
//! per round, and [`SLOTS`] rounds of a lane are one *session*: one visitor, one shop, one purpose, about two minutes
//! from first to last event. A session's purpose is a template that says what each slot is: a page, a call, a payment.
//! Fraud is a session with a bad purpose; the label is known here only and leaves by another way than the event.

use super::events::{call, failure, page, security};
use super::json::Object;
use super::world::{CITIES, ROBOTS, TENANTS, USER_AGENTS};

/// Events of one session.
const SLOTS: u64 = 16;
/// Seconds from one event of a session to the next.
const SLOT_SECS: f64 = 7.0;

/// What the simulated world is like.
#[derive(Clone, Debug)]
pub struct ShopOptions {
    /// Another seed, another world.
    pub seed: u64,
    /// How many shops, at least one.
    pub tenants: u32,
    /// Which fraction of all events is part of a fraud, 0 to 1.
    pub fraud: f64,
    /// Events per second of event time, above 0.
    pub rate: f64,
    /// When event 0 happens, in microseconds since the Unix epoch.
    pub start: i64,
}

/// What is truly wrong with an event. Never part of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fraud {
    /// Failed logins to an account, success from a new country on a new device, then expensive orders.
    AccountTakeover,
    /// A program that takes the catalogue along page by page.
    BotScraping,
    /// A customer who suddenly spends many times the usual, approved.
    BustOut,
    /// Many small authorisations, of one card or of many cards from one device, most declined.
    CardTesting,
    /// Orders that are refunded again and again.
    RefundAbuse,
    /// Cards of many customers used abroad through one terminal.
    TerminalCompromise,
}

impl Fraud {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::AccountTakeover,
        Self::BotScraping,
        Self::BustOut,
        Self::CardTesting,
        Self::RefundAbuse,
        Self::TerminalCompromise,
    ];

    /// The label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AccountTakeover => "account_takeover",
            Self::BotScraping => "bot_scraping",
            Self::BustOut => "bust_out",
            Self::CardTesting => "card_testing",
            Self::RefundAbuse => "refund_abuse",
            Self::TerminalCompromise => "terminal_compromise",
        }
    }
}

/// What an event of a session is.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    /// A call to a service.
    Call,
    /// Something went wrong.
    Fail,
    /// A login that succeeds, but for the odd typing error.
    Login,
    /// A login that fails.
    BadLogin,
    /// Account data are changed.
    Change,
    /// A page of the funnel, step 1 to 7.
    Page(u8),
    /// A payment.
    Pay,
    /// A refund.
    Refund,
}

use Slot::{BadLogin, Call, Change, Fail, Login, Page, Pay, Refund};

const BROWSE: [Slot; 16] = [
    Page(1),
    Call,
    Page(2),
    Call,
    Page(3),
    Call,
    Page(3),
    Call,
    Page(2),
    Call,
    Page(3),
    Page(3),
    Call,
    Page(4),
    Call,
    Page(3),
];
const BUY: [Slot; 16] = [
    Page(1),
    Call,
    Login,
    Page(2),
    Call,
    Page(3),
    Call,
    Page(4),
    Call,
    Page(5),
    Call,
    Page(6),
    Pay,
    Page(7),
    Call,
    Page(1),
];
const RETURN: [Slot; 16] = [
    Login,
    Page(1),
    Page(3),
    Call,
    Page(4),
    Page(5),
    Pay,
    Page(7),
    Call,
    Page(3),
    Page(4),
    Page(5),
    Call,
    Pay,
    Page(7),
    Change,
];
const TILL: [Slot; 16] =
    [Login, Pay, Pay, Call, Pay, Pay, Pay, Call, Pay, Pay, Pay, Call, Pay, Pay, Refund, Pay];
const TROUBLE: [Slot; 16] = [
    Page(1),
    Call,
    BadLogin,
    Login,
    Page(2),
    Fail,
    Page(2),
    Call,
    Page(3),
    Page(4),
    Fail,
    Page(5),
    Call,
    Fail,
    Pay,
    Page(7),
];
const MACHINE: [Slot; 16] =
    [Login, Call, Call, Call, Call, Call, Fail, Call, Call, Call, Change, Call, Call, Call, Call, Call];
const TAKEOVER: [Slot; 16] = [
    BadLogin,
    BadLogin,
    BadLogin,
    BadLogin,
    BadLogin,
    BadLogin,
    BadLogin,
    Login,
    Change,
    Page(3),
    Page(4),
    Page(5),
    Pay,
    Pay,
    Page(7),
    Pay,
];
const PAYING: [Slot; 16] = [Pay; 16];
const SCRAPE: [Slot; 16] = [Page(3); 16];
const REFUNDING: [Slot; 16] = [
    Login, Pay, Refund, Pay, Refund, Pay, Refund, Pay, Refund, Pay, Refund, Pay, Refund, Pay, Refund, Refund,
];

/// Makes events.
#[derive(Clone, Debug)]
pub struct Shop {
    options: ShopOptions,
    lane_bits: u32,
    /// Below it a session's lot is fraud.
    fraud_lots: u64,
    /// Cumulative shares of the shops, of 2³².
    shares: Vec<u64>,
    day: Day,
}

/// The day last written, as text.
#[derive(Clone, Debug)]
struct Day {
    number: i64,
    text: String,
}

/// One visit.
pub(super) struct Session {
    pub(super) fraud: Option<Fraud>,
    pub(super) tenant: usize,
    pub(super) seed: u64,
    pub(super) is_till: bool,
    pub(super) slots: &'static [Slot; 16],
    /// Whose account it is.
    pub(super) customer: Customer,
    pub(super) city: usize,
    pub(super) address: u16,
    pub(super) device: u64,
    pub(super) agent: &'static str,
}

/// A customer's habits.
pub(super) struct Customer {
    pub(super) number: u64,
    pub(super) city: usize,
    pub(super) seed: u64,
    pub(super) usual_cents: f64,
}

/// The place of one event.
pub(super) struct Moment {
    pub(super) id: u64,
    /// Randomness of its own.
    pub(super) lot: u64,
    pub(super) slot: u64,
    pub(super) micros: i64,
}

/// Spreads a number over all 64 bits (the finaliser of splitmix64).
pub(super) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub(super) fn mix2(a: u64, b: u64) -> u64 {
    mix(a ^ mix(b))
}

/// A number from 0 up to `n`, from the upper half of `lot`.
pub(super) fn below(lot: u64, n: u64) -> u64 {
    ((lot >> 32) * n) >> 32
}

/// From 0 up to 1.
pub(super) fn unit(lot: u64) -> f64 {
    (lot >> 11) as f64 / (1u64 << 53) as f64
}

/// Log-normal around 1: `spread` is the standard deviation of the logarithm.
pub(super) fn around_one(lot: u64, spread: f64) -> f64 {
    let sum: u64 = (0..4).map(|n| (lot >> (16 * n)) & 0xffff).sum();
    ((sum as f64 / 65_536.0 - 2.0) * 1.732 * spread).exp()
}

impl Shop {
    /// A world.
    #[must_use]
    pub fn new(options: ShopOptions) -> Self {
        let lanes = (options.rate * SLOT_SECS).clamp(16.0, (1u64 << 24) as f64) as u64;
        let weights: Vec<f64> = (1..=options.tenants.max(1)).map(|n| f64::from(n).powf(-0.8)).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let shares = weights
            .iter()
            .map(|weight| {
                sum += weight / total;
                (sum * 4_294_967_296.0) as u64
            })
            .collect();
        Self {
            lane_bits: lanes.next_power_of_two().trailing_zeros(),
            fraud_lots: (options.fraud.clamp(0.0, 1.0) * 4_294_967_296.0) as u64,
            shares,
            day: Day { number: i64::MIN, text: String::new() },
            options,
        }
    }

    /// When event `index` happens, in microseconds since the Unix epoch.
    #[must_use]
    pub fn event_time(&self, index: u64) -> i64 {
        self.options.start + (index as f64 * 1e6 / self.options.rate) as i64
    }

    /// The event's `id` field, as a number.
    #[must_use]
    pub fn event_id(&self, index: u64) -> u64 {
        mix(index ^ mix(self.options.seed))
    }

    /// Appends event `index` to `out`, one JSON object without newline, and says what is truly wrong with it.
    pub fn write(&mut self, index: u64, out: &mut Vec<u8>) -> Option<Fraud> {
        let mask = (1u64 << self.lane_bits) - 1;
        let round = index >> self.lane_bits;
        // An odd factor and any summand permute the lanes.
        let shuffle = mix2(self.options.seed, round);
        let lane = ((index & mask).wrapping_mul(shuffle | 1).wrapping_add(shuffle >> 32)) & mask;
        let place = mix2(self.options.seed.rotate_left(17), lane);
        let since = round + place % SLOTS;
        let moment = Moment {
            id: self.event_id(index),
            lot: mix2(place, since.rotate_left(40)),
            slot: since % SLOTS,
            micros: self.event_time(index),
        };
        let session = self.session(mix2(place, since / SLOTS), moment.micros);
        self.write_event(&session, &moment, &mut Object(out));
        session.fraud
    }

    fn session(&self, seed: u64, micros: i64) -> Session {
        let lot = mix(seed);
        let tenant = self.shares.partition_point(|share| *share <= lot >> 32).min(self.shares.len() - 1);
        let fraud = ((mix2(seed, 1) >> 32) < self.fraud_lots)
            .then(|| Fraud::ALL[below(mix2(seed, 2), Fraud::ALL.len() as u64) as usize]);
        // More people buy in the evening, fewer at night.
        let hour = (micros.div_euclid(1_000_000) % 86_400) as f64 / 3600.0;
        let buying = 0.5 + 0.5 * ((hour - 13.0) * std::f64::consts::PI / 12.0).cos();
        let purpose = unit(mix2(seed, 3));
        let till = 0.05 + 0.08 * buying;
        let buy = till + 0.10 + 0.20 * buying;
        let mut is_till = false;
        let slots = match fraud {
            Some(Fraud::AccountTakeover) => &TAKEOVER,
            Some(Fraud::BotScraping) => &SCRAPE,
            Some(Fraud::BustOut | Fraud::CardTesting) => &PAYING,
            Some(Fraud::RefundAbuse) => &REFUNDING,
            Some(Fraud::TerminalCompromise) => {
                is_till = true;
                &PAYING
            }
            None if purpose < till => {
                is_till = true;
                &TILL
            }
            None if purpose < buy => &BUY,
            None if purpose < buy + 0.08 => &RETURN,
            None if purpose < buy + 0.14 => &TROUBLE,
            None if purpose < buy + 0.24 => &MACHINE,
            None => &BROWSE,
        };
        let customer = self.customer(tenant, mix2(seed, 4));
        let abroad = matches!(fraud, Some(Fraud::AccountTakeover | Fraud::TerminalCompromise));
        let (city, device) = if abroad {
            (far_from(customer.city, mix2(seed, 5)), mix2(seed, 6))
        } else if fraud.is_some_and(|f| matches!(f, Fraud::CardTesting | Fraud::BotScraping)) {
            (below(mix2(seed, 5), CITIES.len() as u64) as usize, mix2(seed, 6))
        } else {
            // A phone and a computer.
            (customer.city, mix2(customer.seed, 7 + (lot & 1)))
        };
        let agent = match fraud {
            Some(Fraud::BotScraping) => ROBOTS[below(mix2(seed, 8), 3) as usize],
            _ => USER_AGENTS[below(mix(device), USER_AGENTS.len() as u64) as usize],
        };
        Session {
            fraud,
            tenant,
            seed,
            is_till,
            slots,
            city,
            address: (mix2(device, 9) >> 16) as u16,
            device,
            agent,
            customer,
        }
    }

    /// Somebody who shops here: some come often, many seldom.
    pub(super) fn customer(&self, tenant: usize, lot: u64) -> Customer {
        let n_customers = 200_000 / (tenant as u64 + 1) + 1_000;
        let luck = unit(lot);
        let number = (luck * luck * n_customers as f64) as u64;
        let seed = mix2(mix2(self.options.seed, tenant as u64), number);
        let home = TENANTS[tenant % TENANTS.len()].home;
        let city = if seed & 7 < 6 {
            home.0 + below(mix(seed), (home.1 - home.0) as u64) as usize
        } else {
            below(mix(seed), CITIES.len() as u64) as usize
        };
        let usual = f64::from(TENANTS[tenant % TENANTS.len()].usual_cents);
        Customer { number, city, seed, usual_cents: usual * around_one(mix2(seed, 10), 0.5) }
    }

    /// Whether a shop's services are failing at this minute.
    fn is_bad_minute(&self, tenant: usize, micros: i64) -> bool {
        let minute = micros.div_euclid(60_000_000) as u64;
        mix2(mix2(self.options.seed, minute), tenant as u64).is_multiple_of(200)
    }

    fn write_event(&mut self, session: &Session, moment: &Moment, out: &mut Object<'_>) {
        let is_bad = self.is_bad_minute(session.tenant, moment.micros);
        out.raw("{\"@timestamp\":\"");
        self.write_time(moment.micros, out);
        out.hex("\",\"id\":", "", &[moment.id]);
        let tenant = session.tenant;
        match TENANTS.get(tenant) {
            Some(known) => out.text(",\"tenant\":", known.tenant),
            None => out.numbered(",\"tenant\":", "shop-", tenant as u64 + 1),
        };
        match session.slots[moment.slot as usize] {
            Call if is_bad && moment.lot % 10 < 4 => failure(session, moment, out),
            Call => call(session, moment, is_bad, out),
            Fail => failure(session, moment, out),
            Login if session.fraud.is_none() && moment.lot.is_multiple_of(16) => {
                security(session, moment, "login", false, out)
            }
            Login => security(session, moment, "login", true, out),
            BadLogin => security(session, moment, "login", false, out),
            Change => security(session, moment, "address_change", true, out),
            Page(step) => page(session, moment, step, out),
            Pay => self.payment(session, moment, false, out),
            Refund => self.payment(session, moment, true, out),
        }
        out.raw("}");
    }

    fn write_time(&mut self, micros: i64, out: &mut Object<'_>) {
        let (day, of_day) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000) as u64);
        if day != self.day.number {
            let text = jiff::Timestamp::from_second(day * 86_400)
                .map_or_else(|_| "1970-01-01".into(), |t| t.strftime("%Y-%m-%d").to_string());
            self.day = Day { number: day, text };
        }
        let millis = of_day / 1000;
        out.raw(&self.day.text).raw("T").padded(millis / 3_600_000, 2).raw(":");
        out.padded(millis / 60_000 % 60, 2).raw(":").padded(millis / 1000 % 60, 2).raw(".");
        out.padded(millis % 1000, 3).raw("Z");
    }
}

/// A city in another country.
fn far_from(city: usize, lot: u64) -> usize {
    let start = below(lot, CITIES.len() as u64) as usize;
    (start..start + CITIES.len())
        .map(|idx| idx % CITIES.len())
        .find(|idx| CITIES[*idx].iso != CITIES[city].iso)
        .unwrap_or(start)
}
