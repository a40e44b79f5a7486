"""A query of Nexmark in Pathway: JSON lines of files, and the changes of the result into another.

The files are read as tables that do not change: only such a run ends, and says so once its answer is written."""

import os
import time

import pathway as pw

DATA, OUTPUT, QUERY = (os.environ[name] for name in ("DATA", "OUTPUT", "QUERY"))
this = pw.this


class Auction(pw.Schema):
    # `id` in the file: Pathway keeps that name for itself.
    auction: int
    item_name: str
    initial_bid: int
    seller: int
    category: int
    date_time: int
    expires: int


class Bid(pw.Schema):
    auction: int
    bidder: int
    price: int
    channel: str
    url: str
    date_time: int
    extra: str


def read(name, schema, paths=None):
    """A table; only the columns that the query reads are parsed into it."""
    return pw.io.jsonlines.read(f"{DATA}/{name}.jsonl", schema=schema, json_field_paths=paths, mode="static")


def bids(*columns):
    return read("bid", pw.schema_from_types(**{name: Bid.typehints()[name] for name in columns}))


def auctions(*columns):
    schema = pw.schema_from_types(**{name: Auction.typehints()[name] for name in columns})
    return read("auction", schema, {"auction": "/id"})


def counted():
    return bids("extra").reduce(n=pw.reducers.count())


def q0():
    return bids("auction", "bidder", "price", "date_time", "extra")


def q1():
    bid = bids("auction", "bidder", "price", "date_time", "extra")
    return bid.with_columns(price=0.908 * this.price)


def q2():
    return bids("auction", "price").filter(this.auction % 123 == 0)


def q4():
    auction, bid = auctions("auction", "category", "date_time", "expires"), bids("auction", "price", "date_time")
    joined = auction.join(bid, auction.auction == bid.auction).select(
        auction.auction, auction.category, bid.price, at=bid.date_time, begin=auction.date_time, end=auction.expires
    )
    highest = joined.filter((this.at >= this.begin) & (this.at <= this.end)).groupby(this.auction, this.category)
    highest = highest.reduce(this.category, price=pw.reducers.max(this.price))
    return highest.groupby(this.category).reduce(this.category, mean=pw.reducers.avg(this.price))


def q5():
    hopped = bids("auction", "date_time").windowby(
        this.date_time, window=pw.temporal.sliding(hop=2000, duration=10000), instance=this.auction
    )
    counts = hopped.reduce(auction=this._pw_instance, w=this._pw_window_start, num=pw.reducers.count())
    most = counts.groupby(this.w).reduce(this.w, most=pw.reducers.max(this.num))
    joined = counts.join(most, counts.w == most.w, counts.num == most.most)
    return joined.select(counts.auction, counts.num)


def q7():
    bid = bids("auction", "price", "bidder", "date_time").with_columns(w=this.date_time // 10000)
    most = bid.groupby(this.w).reduce(this.w, most=pw.reducers.max(this.price))
    joined = bid.join(most, bid.w == most.w, bid.price == most.most)
    return joined.select(bid.auction, bid.price, bid.bidder, bid.date_time)


def q17():
    bid = bids("auction", "price", "date_time").with_columns(day=this.date_time // 86400000 * 86400000)
    bid = bid.with_columns(
        rank1=pw.cast(int, this.price < 10000), rank2=pw.cast(int, (this.price >= 10000) & (this.price < 1000000))
    )
    return bid.groupby(this.auction, this.day).reduce(
        this.auction,
        this.day,
        total=pw.reducers.count(),
        rank1=pw.reducers.sum(this.rank1),
        rank2=pw.reducers.sum(this.rank2),
        least=pw.reducers.min(this.price),
        most=pw.reducers.max(this.price),
        mean=pw.reducers.avg(this.price),
        sum=pw.reducers.sum(this.price),
    )


def q18():
    bid = bids("auction", "bidder", "price", "channel", "url", "date_time", "extra")
    order = pw.make_tuple(-this.date_time, this.price, this.extra)
    last = bid.with_columns(order=order).groupby(this.bidder, this.auction).reduce(row=pw.reducers.argmin(this.order))
    return bid.ix(last.row).without()


def q19():
    bid = bids("auction", "bidder", "price", "date_time")
    order = pw.make_tuple(-this.price, this.date_time, this.bidder)
    sorted_bids = bid.with_columns(order=order).groupby(this.auction).reduce(
        this.auction, top=pw.reducers.sorted_tuple(this.order)
    )

    @pw.udf
    def ranked(top: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int, int, int]]:
        return [(-price, time, bidder, k) for k, (price, time, bidder) in enumerate(top[:10], 1)]

    flat = sorted_bids.select(this.auction, row=ranked(this.top)).flatten(this.row)
    return flat.select(
        this.auction,
        bidder=this.row.get(2),
        price=this.row.get(0),
        date_time=this.row.get(1),
        k=this.row.get(3),
    )


def q20():
    auction = auctions("auction", "item_name", "initial_bid", "seller", "category").filter(this.category == 10)
    bid = bids("auction", "bidder", "price", "channel")
    joined = bid.join(auction, bid.auction == auction.auction)
    return joined.select(
        bid.auction, bid.bidder, bid.price, bid.channel, auction.item_name, auction.initial_bid, auction.seller
    )


QUERIES = {"read": counted, "q0": q0, "q1": q1, "q2": q2, "q4": q4, "q5": q5, "q7": q7}
QUERIES |= {"q17": q17, "q18": q18, "q19": q19, "q20": q20}

pw.io.jsonlines.write(QUERIES[QUERY](), OUTPUT)
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
print("done", flush=True)
while True:
    time.sleep(3600)
