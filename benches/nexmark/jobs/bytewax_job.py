"""A query of Nexmark in Bytewax: JSON lines of a file, and the result into another.

What is kept for a key is a fold over the bids of a batch; then the key's rows are written anew, in place of the former."""

import heapq
import json
import os
import time
from collections import Counter
from datetime import datetime, timezone

import bytewax.operators as op
from bytewax.connectors.files import FileSink, FileSource
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.run import cli_main

DATA, OUTPUT, QUERY, EPOCH = (os.environ[name] for name in ("DATA", "OUTPUT", "QUERY", "EPOCH"))


class Fold(StatefulBatchLogic):
    """`add` takes bids in, `rows` gives the rows of the key."""

    def __init__(self, state):
        self.state = state

    def on_batch(self, bids):
        self.add(bids)
        return [self.rows()], StatefulBatchLogic.RETAIN

    def snapshot(self):
        return self.state


class Count(Fold):
    def add(self, bids):
        self.state = (self.state or 0) + len(bids)

    def rows(self):
        return [{"n": self.state}]


class MostBids(Fold):
    """Of one hopping window."""

    def add(self, auctions):
        self.state = self.state or Counter()
        self.state.update(auctions)

    def rows(self):
        most = max(self.state.values())
        return [{"auction": auction, "num": num} for auction, num in self.state.items() if num == most]


class HighestBids(Fold):
    """Of one tumbling window."""

    def add(self, bids):
        bids = (self.state or []) + bids
        most = max(bid["price"] for bid in bids)
        self.state = [bid for bid in bids if bid["price"] == most]

    def rows(self):
        return [pick(bid, "auction", "price", "bidder", "date_time") for bid in self.state]


class Statistics(Fold):
    """Of an auction and a day."""

    def add(self, bids):
        self.state = self.state or {
            "auction": bids[0]["auction"],
            "day": day(bids[0]),
            "total": 0,
            "rank1": 0,
            "rank2": 0,
            "least": bids[0]["price"],
            "most": bids[0]["price"],
            "sum": 0,
        }
        state = self.state
        for bid in bids:
            price = bid["price"]
            state["total"] += 1
            state["rank1"] += price < 10000
            state["rank2"] += 10000 <= price < 1000000
            state["least"] = min(state["least"], price)
            state["most"] = max(state["most"], price)
            state["sum"] += price

    def rows(self):
        return [dict(self.state, mean=self.state["sum"] / self.state["total"])]


class LastBid(Fold):
    def add(self, bids):
        if self.state is not None:
            bids.append(self.state)
        self.state = min(bids, key=lambda bid: (-bid["date_time"], bid["price"], bid["extra"]))

    def rows(self):
        return [self.state]


class TopBids(Fold):
    """The ten highest of an auction."""

    def add(self, bids):
        bids = (self.state or []) + bids
        self.state = heapq.nsmallest(10, bids, key=lambda bid: (-bid["price"], bid["date_time"], bid["bidder"]))

    def rows(self):
        fields = ("auction", "bidder", "price", "date_time")
        return [dict(pick(bid, *fields), k=k) for k, bid in enumerate(self.state, 1)]


def pick(bid, *fields):
    return {field: bid[field] for field in fields}


def day(bid):
    return datetime.fromtimestamp(bid["date_time"] / 1000, timezone.utc).strftime("%Y-%m-%d")


def hops(bid):
    last = bid["date_time"] // 2000 * 2000
    return [(str(last - 2000 * k), bid["auction"]) for k in range(5)]


def currency(bid):
    return dict(pick(bid, "auction", "bidder", "date_time", "extra"), price=0.908 * bid["price"])


def parts(bid):
    dirs = (bid["url"].split("/") + [None] * 6)[3:6]
    return dict(pick(bid, "auction", "bidder", "price", "channel"), dir1=dirs[0], dir2=dirs[1], dir3=dirs[2])


# What becomes of a bid.
EACH = {
    "q0": lambda bid: pick(bid, "auction", "bidder", "price", "date_time", "extra"),
    "q1": currency,
    "q2": lambda bid: pick(bid, "auction", "price") if bid["auction"] % 123 == 0 else None,
    "q22": parts,
}
# The keys of a bid with what is folded, and the fold.
FOLDED = {
    "read": (lambda bid: [("", bid)], Count),
    "q5": (hops, MostBids),
    "q7": (lambda bid: [(str(bid["date_time"] // 10000), bid)], HighestBids),
    "q17": (lambda bid: [(f"{bid['auction']} {day(bid)}", bid)], Statistics),
    "q18": (lambda bid: [(f"{bid['bidder']} {bid['auction']}", bid)], LastBid),
    "q19": (lambda bid: [(str(bid["auction"]), bid)], TopBids),
}


flow = Dataflow("nexmark")
lines = op.input("in", flow, FileSource(f"{DATA}/bid.jsonl", batch_size=int(EPOCH)))
bids = op.map("parse", lines, json.loads)
if QUERY in EACH:
    rows = op.filter_map("each", bids, EACH[QUERY])
    texts = op.map("write", rows, lambda row: ("", json.dumps(row)))
else:
    keys, fold = FOLDED[QUERY]
    keyed = op.flat_map("keys", bids, keys)
    folded = op.stateful_batch("fold", keyed, fold)
    texts = op.map("write", folded, lambda pair: (pair[0], json.dumps({"key": pair[0], "rows": pair[1]})))
open(OUTPUT, "w").close()
op.output("out", texts, FileSink(OUTPUT))
cli_main(flow)
print("done", flush=True)
time.sleep(86400)
