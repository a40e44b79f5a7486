"""A query of Nexmark in Flink SQL: JSON lines of three files, and the result, or its changes, into files."""

import os
import time

from pyflink.table import EnvironmentSettings, TableEnvironment

DATA, OUTPUT, QUERY, EPOCH = (os.environ[name] for name in ("DATA", "OUTPUT", "QUERY", "EPOCH"))

TIME = """date_time BIGINT, extra STRING,
  event_time AS CAST(TO_TIMESTAMP_LTZ(date_time, 3) AS TIMESTAMP(3)), WATERMARK FOR event_time AS event_time - INTERVAL '1' SECOND"""
TABLES = {
    "person": "id BIGINT, name STRING, email_address STRING, credit_card STRING, city STRING, state STRING",
    "auction": """id BIGINT, item_name STRING, description STRING, initial_bid BIGINT, reserve BIGINT, expires BIGINT,
      seller BIGINT, category BIGINT""",
    "bid": "auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING",
}

HOPPED = """SELECT auction, count(*) AS num, window_start, window_end FROM TABLE(
  HOP(TABLE bid, DESCRIPTOR(event_time), INTERVAL '2' SECOND, INTERVAL '10' SECOND)) GROUP BY auction, window_start, window_end"""
WON = """SELECT a.id, a.item_name, a.category, a.seller, b.bidder, b.price, b.date_time AS bid_time,
  ROW_NUMBER() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time, b.bidder) AS k
  FROM auction a JOIN bid b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires"""

QUERIES = {
    "read": "SELECT count(extra) AS n FROM bid",
    "q0": "SELECT auction, bidder, price, date_time, extra FROM bid",
    "q1": "SELECT auction, bidder, 0.908 * price AS price, date_time, extra FROM bid",
    "q2": "SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0",
    "q3": """SELECT p.name, p.city, p.state, a.id FROM auction a JOIN person p ON a.seller = p.id
      WHERE a.category = 10 AND p.state IN ('or', 'id', 'ca')""",
    "q4": """SELECT category, avg(CAST(highest AS DOUBLE)) AS mean FROM (
      SELECT a.id, a.category, max(b.price) AS highest FROM auction a JOIN bid b ON a.id = b.auction
      WHERE b.date_time BETWEEN a.date_time AND a.expires GROUP BY a.id, a.category) GROUP BY category""",
    "q5": f"""SELECT c.auction, c.num FROM ({HOPPED}) c JOIN (
      SELECT max(num) AS most, window_start, window_end FROM ({HOPPED}) GROUP BY window_start, window_end) m
      ON c.window_start = m.window_start AND c.window_end = m.window_end AND c.num >= m.most""",
    "q7": """SELECT b.auction, b.price, b.bidder, b.date_time FROM bid b JOIN (
      SELECT max(price) AS most, window_end AS e FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(event_time), INTERVAL '10' SECOND))
      GROUP BY window_start, window_end) m
      ON b.price = m.most WHERE b.event_time >= m.e - INTERVAL '10' SECOND AND b.event_time < m.e""",
    "q8": """SELECT p.id, p.name, p.window_start AS w FROM (
      SELECT id, name, window_start, window_end FROM TABLE(TUMBLE(TABLE person, DESCRIPTOR(event_time), INTERVAL '10' SECOND))
      GROUP BY id, name, window_start, window_end) p JOIN (
      SELECT seller, window_start, window_end FROM TABLE(TUMBLE(TABLE auction, DESCRIPTOR(event_time), INTERVAL '10' SECOND))
      GROUP BY seller, window_start, window_end) a
      ON p.id = a.seller AND p.window_start = a.window_start AND p.window_end = a.window_end""",
    "q9": f"SELECT id, item_name, category, seller, bidder, price, bid_time FROM ({WON}) WHERE k <= 1",
    "q11": """SELECT bidder, count(*) AS bids FROM TABLE(
      SESSION(TABLE bid PARTITION BY bidder, DESCRIPTOR(event_time), INTERVAL '10' SECOND)) GROUP BY bidder, window_start, window_end""",
    "q14": """SELECT auction, bidder, 0.908 * price AS price,
      CASE WHEN HOUR(event_time) >= 8 AND HOUR(event_time) <= 18 THEN 'day' WHEN HOUR(event_time) <= 6 OR HOUR(event_time) >= 20 THEN 'night'
      ELSE 'other' END AS t, date_time, CHAR_LENGTH(extra) - CHAR_LENGTH(REPLACE(extra, 'c', '')) AS c
      FROM bid WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000""",
    "q15": """SELECT DATE_FORMAT(event_time, 'yyyy-MM-dd') AS `day`, count(*) AS total,
      count(*) FILTER (WHERE price < 10000) AS rank1,
      count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2,
      count(DISTINCT bidder) AS bidders, count(DISTINCT bidder) FILTER (WHERE price < 10000) AS bidders1,
      count(DISTINCT auction) AS auctions, count(DISTINCT auction) FILTER (WHERE price < 10000) AS auctions1
      FROM bid GROUP BY DATE_FORMAT(event_time, 'yyyy-MM-dd')""",
    "q16": """SELECT channel, DATE_FORMAT(event_time, 'yyyy-MM-dd') AS `day`, max(date_time) AS newest, count(*) AS total,
      count(*) FILTER (WHERE price < 10000) AS rank1, count(DISTINCT bidder) AS bidders,
      count(DISTINCT auction) AS auctions FROM bid GROUP BY channel, DATE_FORMAT(event_time, 'yyyy-MM-dd')""",
    "q17": """SELECT auction, DATE_FORMAT(event_time, 'yyyy-MM-dd') AS `day`, count(*) AS total,
      count(*) FILTER (WHERE price < 10000) AS rank1,
      count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2,
      min(price) AS `least`, max(price) AS most, avg(CAST(price AS DOUBLE)) AS mean, sum(price) AS `sum`
      FROM bid GROUP BY auction, DATE_FORMAT(event_time, 'yyyy-MM-dd')""",
    "q18": """SELECT auction, bidder, price, channel, url, date_time, extra FROM (
      SELECT *, ROW_NUMBER() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC, price, extra) AS k FROM bid)
      WHERE k <= 1""",
    "q19": """SELECT auction, bidder, price, date_time, k FROM (
      SELECT *, ROW_NUMBER() OVER (PARTITION BY auction ORDER BY price DESC, date_time, bidder) AS k FROM bid)
      WHERE k <= 10""",
    "q20": """SELECT b.auction, b.bidder, b.price, b.channel, a.item_name, a.initial_bid, a.seller
      FROM bid b JOIN auction a ON b.auction = a.id WHERE a.category = 10""",
    "q21": """SELECT auction, bidder, price, channel, CASE LOWER(channel) WHEN 'apple' THEN '0' WHEN 'google' THEN '1'
      WHEN 'facebook' THEN '2' WHEN 'baidu' THEN '3'
      ELSE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) END AS channel_id FROM bid
      WHERE REGEXP(url, '(&|^)channel_id=([^&]*)') OR LOWER(channel) IN ('apple', 'google', 'facebook', 'baidu')""",
    "q22": """SELECT auction, bidder, price, channel, SPLIT_INDEX(url, '/', 3) AS dir1, SPLIT_INDEX(url, '/', 4) AS dir2,
      SPLIT_INDEX(url, '/', 5) AS dir3 FROM bid""",
}
# Those that take rows back: a format of changes is written.
CHANGING = {"read", "q4", "q9", "q15", "q16", "q17", "q18", "q19"}

table = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
settings = table.get_config()
settings.set("parallelism.default", "1")
settings.set("table.local-time-zone", "UTC")
settings.set("pipeline.object-reuse", "true")
# As its own Nexmark is run; and a batch is what an epoch is elsewhere.
settings.set("table.exec.mini-batch.enabled", "true")
settings.set("table.exec.mini-batch.allow-latency", "2 s")
settings.set("table.exec.mini-batch.size", EPOCH)
settings.set("table.optimizer.distinct-agg.split.enabled", "true")
for name, columns in TABLES.items():
    table.execute_sql(f"""CREATE TABLE {name} ({columns}, {TIME}) WITH (
      'connector' = 'filesystem', 'path' = 'file://{DATA}/{name}.jsonl', 'format' = 'json')""")
form = "debezium-json" if QUERY in CHANGING else "json"
table.execute_sql(f"""CREATE TABLE answer WITH ('connector' = 'filesystem', 'path' = 'file://{OUTPUT}', 'format' = '{form}')
  AS {QUERIES[QUERY]}""").wait()
print("done", flush=True)
time.sleep(86400)
