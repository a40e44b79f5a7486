// Sends numbered events with Elastic's own client of the Beats protocol, and writes the numbers that were acknowledged, one
// line per batch: "acked FIRST LAST". A batch that was not acknowledged is sent again over a new connection.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	v2 "github.com/elastic/go-lumber/client/v2"
)

func main() {
	addr := flag.String("c", "127.0.0.1:5044", "where to send")
	count := flag.Int("n", 1000, "how many events; 0: for ever")
	size := flag.Int("batch", 100, "events per window")
	level := flag.Int("compress", 3, "0: not at all")
	inflight := flag.Int("inflight", 0, "windows that may wait for their acknowledgement; 0: one after the other")
	ca := flag.String("ca", "", "the server's authority: use TLS")
	cert := flag.String("cert", "", "certificate to show")
	key := flag.String("key", "", "its key")
	flag.Parse()

	dial := (&net.Dialer{Timeout: 5 * time.Second}).Dial
	if *ca != "" {
		config := &tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool()}
		pem, err := os.ReadFile(*ca)
		if err != nil || !config.RootCAs.AppendCertsFromPEM(pem) {
			fatal("no authority:", err)
		}
		if *cert != "" {
			pair, err := tls.LoadX509KeyPair(*cert, *key)
			if err != nil {
				fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		dial = func(network, address string) (net.Conn, error) { return tls.Dial(network, address, config) }
	}
	options := []v2.Option{v2.CompressionLevel(*level), v2.Timeout(10 * time.Second)}

	next := 0
	for *count == 0 || next < *count {
		var err error
		if *inflight > 0 {
			next, err = pipelined(dial, *addr, options, *inflight, next, *count, *size)
		} else {
			next, err = oneByOne(dial, *addr, options, next, *count, *size)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			time.Sleep(50 * time.Millisecond)
		}
	}
}

type dialer = func(network, address string) (net.Conn, error)

// oneByOne returns the first number that was not acknowledged.
func oneByOne(dial dialer, addr string, options []v2.Option, next, count, size int) (int, error) {
	client, err := v2.SyncDialWith(dial, addr, options...)
	if err != nil {
		return next, err
	}
	defer client.Close()
	for count == 0 || next < count {
		events := batch(next, count, size)
		n, err := client.Send(events)
		if err != nil {
			return next, err
		}
		if n != len(events) {
			fatal("acknowledged", n, "of", len(events))
		}
		acked(next, n)
		next += n
	}
	return next, nil
}

func pipelined(dial dialer, addr string, options []v2.Option, inflight, next, count, size int) (int, error) {
	client, err := v2.AsyncDialWith(dial, addr, inflight, options...)
	if err != nil {
		return next, err
	}
	defer client.Close()
	type result struct {
		n   int
		err error
	}
	results := make(chan result, 1000)
	sent, waiting := next, 0
	for {
		for err == nil && waiting < inflight && (count == 0 || sent < count) {
			events := batch(sent, count, size)
			n := len(events)
			err = client.Send(func(seq uint32, err error) {
				if err == nil && int(seq) != n {
					fatal("acknowledged", seq, "of", n)
				}
				results <- result{n, err}
			}, events)
			if err == nil {
				sent += n
				waiting++
			}
		}
		if waiting == 0 || err != nil {
			return next, err
		}
		got := <-results
		waiting--
		if got.err != nil {
			return next, got.err
		}
		acked(next, got.n)
		next += got.n
	}
}

func batch(next, count, size int) []interface{} {
	var events []interface{}
	for n := next; n < next+size && (count == 0 || n < count); n++ {
		events = append(events, map[string]interface{}{
			"@timestamp": time.Now(),
			"n":          n,
			"message":    fmt.Sprintf("event %d with \"quotes\"\nand a line", n),
		})
	}
	return events
}

func acked(first, n int) {
	fmt.Printf("acked %d %d\n", first, first+n-1)
}

func fatal(what ...interface{}) {
	fmt.Fprintln(os.Stderr, what...)
	os.Exit(1)
}
