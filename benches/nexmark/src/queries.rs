//! The queries, after <https://github.com/nexmark/nexmark>, in the SQL of views.

/// A query of the benchmark.
#[derive(Debug)]
pub struct Query {
    /// Such as `q5`.
    pub name: &'static str,
    /// What it asks.
    pub what: &'static str,
    /// As a view.
    pub view: &'static str,
    /// As DataFusion answers it over a table.
    pub batch: Batch,
}

impl Query {
    /// The text with which DataFusion answers it over tables.
    #[must_use]
    pub fn over_tables(&self) -> &'static str {
        match self.batch {
            Batch::Same => self.view,
            Batch::Other(sql) => sql,
        }
    }
}

/// How a query is answered over a table.
#[derive(Clone, Copy, Debug)]
pub enum Batch {
    /// As it stands.
    Same,
    /// As another text says the same.
    Other(&'static str),
}

/// Those of q0 to q22 that are not here, and why.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("q10", "writes files by date: the Parquet sink with `partition_by`, not a query"),
    ("q12", "windows of processing time: a replay would not repeat them, so views have none"),
    ("q13", "joins a table in a file: the step `lookup`, not a query"),
];

/// Hopping windows over a table: each bid once for each window that it is in.
const Q5_BATCH: &str = "WITH hopped AS (SELECT auction, date_bin(INTERVAL '2 seconds', date_time) - k.k AS w \
     FROM bid CROSS JOIN (VALUES (INTERVAL '0 seconds'), (INTERVAL '2 seconds'), (INTERVAL '4 seconds'), (INTERVAL '6 seconds'), \
      (INTERVAL '8 seconds')) AS k(k)), \
     counts AS (SELECT auction, w, count(*) AS num FROM hopped GROUP BY auction, w) \
     SELECT c.auction, c.num FROM counts c JOIN (SELECT max(num) AS most, w FROM counts GROUP BY w) m \
     ON c.w = m.w AND c.num >= m.most";

const Q7_BATCH: &str = "SELECT b.auction, b.price, b.bidder, b.date_time FROM bid b JOIN \
     (SELECT max(price) AS most, date_bin(INTERVAL '10 seconds', date_time) AS s FROM bid GROUP BY 2) m \
     ON b.price = m.most WHERE b.date_time >= m.s AND b.date_time < m.s + INTERVAL '10 seconds'";

const Q8_BATCH: &str = "SELECT p.id, p.name, p.w FROM \
     (SELECT id, name, date_bin(INTERVAL '10 seconds', date_time) AS w FROM person GROUP BY 1, 2, 3) p JOIN \
     (SELECT seller, date_bin(INTERVAL '10 seconds', date_time) AS w FROM auction GROUP BY 1, 2) a \
     ON p.id = a.seller AND p.w = a.w";

const Q11_BATCH: &str = "SELECT bidder, count(*) AS bids FROM \
     (SELECT bidder, sum(is_first) OVER (PARTITION BY bidder ORDER BY date_time, is_first DESC ROWS UNBOUNDED PRECEDING) AS id FROM \
      (SELECT bidder, date_time, CASE WHEN date_time <= INTERVAL '10 seconds' + \
       lag(date_time) OVER (PARTITION BY bidder ORDER BY date_time) THEN 0 ELSE 1 END AS is_first FROM bid)) \
     GROUP BY bidder, id";

const fn query(name: &'static str, what: &'static str, view: &'static str) -> Query {
    Query { name, what, view, batch: Batch::Same }
}

/// What it costs to read the bids and count them: the part of every query over a file that is not the query.
pub const READ: Query = query("read", "read the bids and count them", "SELECT count(extra) AS n FROM bid");

/// All of them.
pub const QUERIES: &[Query] = &[
    query("q0", "pass through", "SELECT auction, bidder, price, date_time, extra FROM bid"),
    query("q1", "currency", "SELECT auction, bidder, 0.908 * price AS price, date_time, extra FROM bid"),
    query("q2", "filter", "SELECT auction, price FROM bid WHERE auction % 123 = 0"),
    query(
        "q3",
        "join with a filter on both sides",
        "SELECT p.name, p.city, p.state, a.id FROM auction a JOIN person p ON a.seller = p.id \
         WHERE a.category = 10 AND p.state IN ('or', 'id', 'ca')",
    ),
    query(
        "q4",
        "mean of winning prices per category",
        "SELECT category, avg(final) AS mean FROM \
         (SELECT a.id, a.category, max(b.price) AS final FROM auction a JOIN bid b ON a.id = b.auction \
          WHERE b.date_time BETWEEN a.date_time AND a.expires GROUP BY a.id, a.category) GROUP BY category",
    ),
    Query {
        name: "q5",
        what: "auctions with the most bids, hopping windows",
        view: "SELECT c.auction, c.num FROM \
               (SELECT auction, count(*) AS num, hop_start(date_time, INTERVAL '2 seconds', INTERVAL '10 seconds') AS w \
                FROM bid GROUP BY auction, hop(date_time, INTERVAL '2 seconds', INTERVAL '10 seconds')) c \
               JOIN (SELECT max(num) AS most, w FROM \
                (SELECT count(*) AS num, hop_start(date_time, INTERVAL '2 seconds', INTERVAL '10 seconds') AS w \
                 FROM bid GROUP BY auction, hop(date_time, INTERVAL '2 seconds', INTERVAL '10 seconds')) GROUP BY w) m \
               ON c.w = m.w AND c.num >= m.most",
        batch: Batch::Other(Q5_BATCH),
    },
    query(
        "q6",
        "mean of a seller's last ten winning prices",
        "SELECT seller, avg(final) OVER (PARTITION BY seller ORDER BY bid_time, id ROWS 9 PRECEDING) AS mean FROM \
         (SELECT id, seller, price AS final, bid_time FROM \
          (SELECT a.id, a.seller, b.price, b.date_time AS bid_time, \
           row_number() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time, b.bidder) AS k \
           FROM auction a JOIN bid b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires) WHERE k = 1)",
    ),
    Query {
        name: "q7",
        what: "highest bid of each window",
        view: "SELECT b.auction, b.price, b.bidder, b.date_time FROM bid b JOIN \
         (SELECT max(price) AS most, tumble_end(date_time, INTERVAL '10 seconds') AS e FROM bid \
          GROUP BY tumble(date_time, INTERVAL '10 seconds')) m \
         ON b.price = m.most WHERE b.date_time >= m.e - INTERVAL '10 seconds' AND b.date_time < m.e",
        batch: Batch::Other(Q7_BATCH),
    },
    Query {
        name: "q8",
        what: "new persons who sell at once",
        view: "SELECT p.id, p.name, p.w FROM \
         (SELECT id, name, tumble_start(date_time, INTERVAL '10 seconds') AS w FROM person \
          GROUP BY id, name, tumble(date_time, INTERVAL '10 seconds')) p JOIN \
         (SELECT seller, tumble_start(date_time, INTERVAL '10 seconds') AS w FROM auction \
          GROUP BY seller, tumble(date_time, INTERVAL '10 seconds')) a ON p.id = a.seller AND p.w = a.w",
        batch: Batch::Other(Q8_BATCH),
    },
    query(
        "q9",
        "winning bids",
        "SELECT id, item_name, category, seller, bidder, price, bid_time FROM \
         (SELECT a.id, a.item_name, a.category, a.seller, b.bidder, b.price, b.date_time AS bid_time, \
          row_number() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time, b.bidder) AS k \
          FROM auction a JOIN bid b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires) WHERE k <= 1",
    ),
    Query {
        name: "q11",
        what: "sessions of bidders",
        view: "SELECT bidder, count(*) AS bids FROM bid GROUP BY bidder, session(date_time, INTERVAL '10 seconds')",
        batch: Batch::Other(Q11_BATCH),
    },
    query(
        "q14",
        "calculation",
        "SELECT auction, bidder, 0.908 * price AS price, \
         CASE WHEN date_part('hour', date_time) >= 8 AND date_part('hour', date_time) <= 18 THEN 'day' \
              WHEN date_part('hour', date_time) <= 6 OR date_part('hour', date_time) >= 20 THEN 'night' ELSE 'other' END AS t, \
         date_time, character_length(extra) - character_length(replace(extra, 'c', '')) AS c FROM bid \
         WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000",
    ),
    query(
        "q15",
        "distinct bidders and auctions per day",
        "SELECT date_trunc('day', date_time) AS day, count(*) AS total, \
         count(*) FILTER (WHERE price < 10000) AS rank1, \
         count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2, \
         count(DISTINCT bidder) AS bidders, count(DISTINCT bidder) FILTER (WHERE price < 10000) AS bidders1, \
         count(DISTINCT auction) AS auctions, count(DISTINCT auction) FILTER (WHERE price < 10000) AS auctions1 \
         FROM bid GROUP BY date_trunc('day', date_time)",
    ),
    query(
        "q16",
        "the same per channel",
        "SELECT channel, date_trunc('day', date_time) AS day, max(date_time) AS newest, count(*) AS total, \
         count(*) FILTER (WHERE price < 10000) AS rank1, count(DISTINCT bidder) AS bidders, \
         count(DISTINCT auction) AS auctions FROM bid GROUP BY channel, date_trunc('day', date_time)",
    ),
    query(
        "q17",
        "statistics of auctions per day",
        "SELECT auction, date_trunc('day', date_time) AS day, count(*) AS total, \
         count(*) FILTER (WHERE price < 10000) AS rank1, \
         count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2, \
         min(price) AS least, max(price) AS most, avg(price) AS mean, sum(price) AS sum \
         FROM bid GROUP BY auction, date_trunc('day', date_time)",
    ),
    query(
        "q18",
        "last bid of a bidder on an auction",
        "SELECT auction, bidder, price, channel, url, date_time, extra FROM \
         (SELECT *, row_number() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC, price, extra) AS k FROM bid) \
         WHERE k <= 1",
    ),
    query(
        "q19",
        "ten highest bids of an auction",
        "SELECT auction, bidder, price, date_time, k FROM \
         (SELECT *, row_number() OVER (PARTITION BY auction ORDER BY price DESC, date_time, bidder) AS k FROM bid) WHERE k <= 10",
    ),
    query(
        "q20",
        "bids with their auction, of one category",
        "SELECT b.auction, b.bidder, b.price, b.channel, a.item_name, a.initial_bid, a.seller FROM bid b \
         JOIN auction a ON b.auction = a.id WHERE a.category = 10",
    ),
    query(
        "q21",
        "channel ids by pattern",
        "SELECT auction, bidder, price, channel, CASE lower(channel) WHEN 'apple' THEN '0' WHEN 'google' THEN '1' \
         WHEN 'facebook' THEN '2' WHEN 'baidu' THEN '3' \
         ELSE regexp_match(url, '(?:&|^)channel_id=([^&]*)')[1] END AS channel_id FROM bid \
         WHERE regexp_like(url, '(&|^)channel_id=([^&]*)') OR lower(channel) IN ('apple', 'google', 'facebook', 'baidu')",
    ),
    query(
        "q22",
        "parts of an address",
        "SELECT auction, bidder, price, channel, split_part(url, '/', 4) AS dir1, split_part(url, '/', 5) AS dir2, \
         split_part(url, '/', 6) AS dir3 FROM bid",
    ),
];
