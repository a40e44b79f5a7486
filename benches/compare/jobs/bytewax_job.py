"""W8 in Bytewax: events of a Kafka topic counted and summed per tenant and minute of event time, into another."""

import json
import os
from datetime import datetime, timedelta, timezone

import bytewax.operators as op
import bytewax.operators.windowing as win
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow

BROKERS = [os.environ["BROKER"]]
MINUTE = timedelta(minutes=1)
START = datetime(2026, 11, 21, tzinfo=timezone.utc)


def parse(message):
    event = json.loads(message.value)
    return event["tenant"], (datetime.fromisoformat(event["@timestamp"]), event["amount"])


def fold(state, event):
    return state[0] + 1, state[1] + event[1]


def merge(one, other):
    return one[0] + other[0], one[1] + other[1]


def write(row):
    tenant, (window, (events, amount)) = row
    start = (START + window * MINUTE).isoformat()
    text = json.dumps({"tenant": tenant, "window": start, "events": events, "amount": amount})
    return KafkaSinkMessage(tenant.encode(), text.encode())


clock = win.EventClock(
    lambda event: event[0], wait_for_system_duration=timedelta(seconds=int(os.environ["LATENESS"]))
)
windower = win.TumblingWindower(length=MINUTE, align_to=START)

flow = Dataflow("w8")
messages = op.input("in", flow, KafkaSource(BROKERS, [os.environ["INPUT"]], batch_size=10_000))
events = op.map("parse", messages, parse)
# Sums do not depend on the order, and it is faster without.
counted = win.fold_window("count", events, clock, windower, lambda: (0, 0.0), fold, merge, ordered=False)
rows = op.map("write", counted.down, write)
op.output("out", rows, KafkaSink(BROKERS, os.environ["OUTPUT"]))
