"""W8 in Pathway: events of a Kafka topic counted and summed per tenant and minute of event time, into another."""

import os
from datetime import timedelta

import pathway as pw

BROKER = os.environ["BROKER"]


class Event(pw.Schema):
    time: str = pw.column_definition(name="@timestamp")
    tenant: str
    amount: float


group = {"bootstrap.servers": BROKER, "group.id": os.environ["OUTPUT"], "auto.offset.reset": "earliest"}
events = pw.io.kafka.read(group, topic=os.environ["INPUT"], schema=Event, format="json")
time = pw.this["@timestamp"].dt.strptime("%Y-%m-%dT%H:%M:%S%.fZ").dt.to_utc("UTC")
events = events.select(pw.this.tenant, pw.this.amount, time=time)
counted = events.windowby(
    pw.this.time,
    window=pw.temporal.tumbling(duration=timedelta(minutes=1)),
    behavior=pw.temporal.exactly_once_behavior(shift=timedelta(seconds=int(os.environ["LATENESS"]))),
    instance=pw.this.tenant,
).reduce(
    tenant=pw.this._pw_instance,
    window=pw.this._pw_window_start,
    events=pw.reducers.count(),
    amount=pw.reducers.sum(pw.this.amount),
)
pw.io.kafka.write(counted, {"bootstrap.servers": BROKER}, topic_name=os.environ["OUTPUT"], format="json")
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
