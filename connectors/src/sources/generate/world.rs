//! The made-up world of the simulator: cities with their networks, shops, clients, services.
//!
//! `examples/geo.csv` and `examples/tenants.csv` say the same for the `geoip` and `lookup` steps; a test keeps them
//! in agreement.

/// A city. Its customers have addresses in `10.<network>.0.0/16`: private, so that no stranger's address is used.
/// Name and place are in `examples/geo.csv`.
pub(super) struct City {
    pub(super) network: u8,
    /// The country, ISO 3166.
    pub(super) iso: &'static str,
    pub(super) currency: &'static str,
}

const fn city(network: u8, iso: &'static str, currency: &'static str) -> City {
    City { network, iso, currency }
}

/// Every city, in the order of `examples/geo.csv`; those of one country lie together.
pub(super) const CITIES: &[City] = &[
    city(10, "FR", "EUR"),  // Paris
    city(11, "FR", "EUR"),  // Lyon
    city(12, "FR", "EUR"),  // Marseille
    city(13, "FR", "EUR"),  // Lille
    city(20, "DE", "EUR"),  // Berlin
    city(21, "DE", "EUR"),  // Hamburg
    city(22, "DE", "EUR"),  // Munich
    city(30, "ES", "EUR"),  // Madrid
    city(31, "ES", "EUR"),  // Barcelona
    city(35, "IT", "EUR"),  // Milan
    city(36, "IT", "EUR"),  // Rome
    city(40, "GB", "GBP"),  // London
    city(41, "GB", "GBP"),  // Manchester
    city(45, "NL", "EUR"),  // Amsterdam
    city(46, "BE", "EUR"),  // Brussels
    city(50, "PL", "PLN"),  // Warsaw
    city(55, "SE", "SEK"),  // Stockholm
    city(60, "MA", "MAD"),  // Casablanca
    city(61, "MA", "MAD"),  // Rabat
    city(62, "MA", "MAD"),  // Marrakesh
    city(63, "MA", "MAD"),  // Agadir
    city(65, "DZ", "DZD"),  // Algiers
    city(66, "TN", "TND"),  // Tunis
    city(70, "EG", "EGP"),  // Cairo
    city(75, "NG", "NGN"),  // Lagos
    city(80, "US", "USD"),  // New York
    city(81, "US", "USD"),  // Chicago
    city(82, "US", "USD"),  // San Francisco
    city(85, "CA", "CAD"),  // Montreal
    city(86, "CA", "CAD"),  // Toronto
    city(90, "BR", "BRL"),  // Sao Paulo
    city(95, "AE", "AED"),  // Dubai
    city(100, "IN", "INR"), // Mumbai
    city(105, "SG", "SGD"), // Singapore
    city(110, "JP", "JPY"), // Tokyo
    city(115, "AU", "AUD"), // Sydney
];

/// A shop on the platform. Name, plan and region are in `examples/tenants.csv`.
pub(super) struct Tenant {
    pub(super) tenant: &'static str,
    /// Where most of its customers live: a range of [`CITIES`].
    pub(super) home: (usize, usize),
    /// What a usual order costs, in hundredths.
    pub(super) usual_cents: u32,
}

const fn tenant(tenant: &'static str, home: (usize, usize), usual_cents: u32) -> Tenant {
    Tenant { tenant, home, usual_cents }
}

/// The shops, largest first, in the order of `examples/tenants.csv`.
pub(super) const TENANTS: &[Tenant] = &[
    tenant("maison-lumiere", (0, 4), 6500),
    tenant("nordwind-sport", (4, 7), 8900),
    tenant("atlas-market", (17, 23), 2400),
    tenant("union-supply", (25, 28), 5200),
    tenant("casa-verde", (7, 11), 3900),
    tenant("thames-books", (11, 13), 1900),
    tenant("polder-bikes", (13, 15), 34000),
    tenant("vistula-tech", (15, 16), 21000),
    tenant("souk-artisan", (17, 21), 3100),
    tenant("maple-outdoor", (28, 30), 11500),
    tenant("harbour-coffee", (31, 36), 2800),
    tenant("cedar-pharma", (21, 25), 4500),
];

/// Clients of people, shortened.
pub(super) const USER_AGENTS: &[&str] = &[
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) Version/18.6 Mobile Safari/604.1",
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) Chrome/142.0.0.0 Mobile",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Version/18.6 Safari/605.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "ShopApp/7.12.1 (Android 14; SM-S921B; fr-FR)",
];

/// Clients of programs, of which some are welcome.
pub(super) const ROBOTS: &[&str] =
    &["python-requests/2.32.3", "Go-http-client/2.0", "HeadlessChrome/142.0.0.0"];

/// A page on the way to a purchase.
pub(super) struct Page {
    pub(super) page: &'static str,
    pub(super) action: &'static str,
    pub(super) message: &'static str,
    pub(super) of_product: bool,
}

/// Pages by funnel step, the first of which is step 1.
pub(super) const PAGES: [Page; 7] = [
    Page { page: "/", action: "view", message: "Home page shown", of_product: false },
    Page { page: "/search", action: "search", message: "Search results shown", of_product: false },
    Page { page: "/product", action: "view", message: "Product page shown", of_product: true },
    Page { page: "/cart", action: "add_to_cart", message: "Product added to cart", of_product: true },
    Page { page: "/checkout", action: "checkout", message: "Checkout begun", of_product: false },
    Page { page: "/payment", action: "pay", message: "Payment details entered", of_product: false },
    Page { page: "/confirmation", action: "confirm", message: "Order confirmation shown", of_product: false },
];

/// Where visitors come from.
pub(super) const REFERRERS: &[&str] = &[
    "https://www.search.example/",
    "https://news.example/deals",
    "https://social.example/shop",
    "https://mail.example/newsletter",
];

/// A service, one of its routes, and how it performs.
pub(super) struct Route {
    pub(super) service: &'static str,
    pub(super) endpoint: &'static str,
    pub(super) method: &'static str,
    /// The usual latency, in tenths of a millisecond.
    pub(super) latency: u32,
    pub(super) bytes: u32,
    pub(super) cacheable: bool,
}

/// The routes that answer.
pub(super) const ROUTES: &[Route] = &[
    route("catalog", "/api/v2/products/{id}", "GET", 180, 9_200, true),
    route("catalog", "/api/v2/search", "GET", 640, 18_400, true),
    route("cart", "/api/v2/cart", "GET", 120, 2_100, false),
    route("cart", "/api/v2/cart/items", "POST", 210, 1_300, false),
    route("checkout", "/api/v2/checkout", "POST", 880, 3_400, false),
    route("payments", "/api/v2/payments", "POST", 2_400, 900, false),
    route("accounts", "/api/v2/session", "GET", 90, 700, false),
    route("inventory", "/api/v2/stock", "GET", 70, 1_800, true),
];

const fn route(
    service: &'static str,
    endpoint: &'static str,
    method: &'static str,
    latency: u32,
    bytes: u32,
    cacheable: bool,
) -> Route {
    Route { service, endpoint, method, latency, bytes, cacheable }
}

/// What goes wrong: type, message, stack trace (already escaped), HTTP status.
pub(super) const FAILURES: &[(&str, &str, &str, u16)] = &[
    (
        "TimeoutException",
        "upstream did not answer within 3000 ms",
        "at PaymentGateway.authorize(PaymentGateway.java:214)\\n\\tat Checkout.pay(Checkout.java:88)",
        504,
    ),
    (
        "ConnectionResetError",
        "connection reset by peer",
        "File \\\"cart/store.py\\\", line 127, in load\\n    return pool.get(key)",
        502,
    ),
    (
        "NullPointerException",
        "customer.address is null",
        "at ShippingService.rate(ShippingService.java:61)\\n\\tat Checkout.quote(Checkout.java:42)",
        500,
    ),
    (
        "ValidationError",
        "quantity must be positive",
        "at validate (/srv/cart/items.js:33:11)\\n    at post (/srv/cart/routes.js:18:5)",
        422,
    ),
    (
        "DeadlockDetected",
        "could not serialize access due to concurrent update",
        "File \\\"inventory/reserve.py\\\", line 59, in reserve",
        503,
    ),
];
