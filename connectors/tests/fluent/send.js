// Sends numbered events with the Fluentd project's client: send.js PORT MODE N OPTIONS. N is how many, 0 is without end.
// Every number that was acknowledged is printed, a line each. An event that was not is sent again.
const fs = require("fs");
const { FluentClient } = require("@fluent-org/logger");

const [port, mode, n, text] = process.argv.slice(2);
const { ca, ...options } = JSON.parse(text);
const socket = { host: "localhost", port: Number(port), timeout: 3000, reconnect: { delay: 50, maxDelay: 200 } };
if (ca) {
  socket.tls = { ca: fs.readFileSync(ca) };
}
const client = new FluentClient("app", {
  eventMode: mode,
  socket,
  ack: { ackTimeout: 5000 },
  milliseconds: true,
  flushInterval: 5,
  eventRetry: { attempts: Infinity, delay: 20, maxDelay: 200 },
  ...options,
});
client.socketOn("error", () => {});

const last = Number(n) || Infinity;
const waiting = new Set();
let next = 0;
let done = 0;

function fill() {
  while (waiting.size < 1000 && next < last) {
    const number = next++;
    waiting.add(number);
    client.emit({ n: number, text: "x".repeat(200) }).then(() => {
      waiting.delete(number);
      fs.writeSync(1, `${number}\n`);
      if (++done === last) {
        client.disconnect().finally(() => process.exit(0));
      }
      fill();
    });
  }
}
fill();
