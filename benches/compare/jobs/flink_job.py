"""W8 in Flink SQL: events of a Kafka topic counted and summed per tenant and minute of event time, into another."""

import os

from pyflink.table import EnvironmentSettings, TableEnvironment

KAFKA = f"'connector' = 'kafka', 'properties.bootstrap.servers' = '{os.environ['BROKER']}'"
JSON = "'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601'"
INPUT, OUTPUT, LATENESS = (os.environ[name] for name in ("INPUT", "OUTPUT", "LATENESS"))

table = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
settings = table.get_config()
settings.set("pipeline.jars", "file://" + os.environ["CONNECTOR"])
settings.set("parallelism.default", "1")
settings.set("table.local-time-zone", "UTC")
table.execute_sql(f"""CREATE TABLE events (
  tenant STRING, amount DOUBLE, `@timestamp` TIMESTAMP_LTZ(3),
  WATERMARK FOR `@timestamp` AS `@timestamp` - INTERVAL '{LATENESS}' SECOND(3)
) WITH ({KAFKA}, 'topic' = '{INPUT}', 'properties.group.id' = '{OUTPUT}',
  'scan.startup.mode' = 'earliest-offset', {JSON})""")
table.execute_sql(f"""CREATE TABLE counted (
  tenant STRING, `window` TIMESTAMP_LTZ(3), events BIGINT, amount DOUBLE
) WITH ({KAFKA}, 'topic' = '{OUTPUT}', {JSON})""")
table.execute_sql("""INSERT INTO counted
  SELECT tenant, CAST(window_start AS TIMESTAMP_LTZ(3)), count(*), sum(amount)
  FROM TUMBLE(TABLE events, DESCRIPTOR(`@timestamp`), INTERVAL '1' MINUTE)
  GROUP BY tenant, window_start, window_end""").wait()
