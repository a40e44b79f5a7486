// Sends numbered samples with the Prometheus project's own client of remote write 2.0, and writes the numbers that were
// acknowledged, one line per request: "acked FIRST LAST". A request that was not acknowledged is sent again, for ever.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/exp/api/remote"
	writev2 "github.com/prometheus/client_golang/exp/api/remote/genproto/v2"
)

func main() {
	url := flag.String("c", "http://127.0.0.1:9201", "where to send")
	size := flag.Int("batch", 500, "samples per request")
	flag.Parse()

	api, err := remote.NewAPI(
		*url,
		remote.WithAPIHTTPClient(&http.Client{Timeout: time.Second}),
		remote.WithAPIBackoff(remote.BackoffConfig{Min: 20 * time.Millisecond, Max: 200 * time.Millisecond}),
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	begin := time.Now().UnixMilli()
	for next := 0; ; next += *size {
		request := request(begin, next, *size)
		for {
			stats, err := api.Write(context.Background(), remote.WriteV2MessageType, request)
			if err == nil {
				if stats.Samples < *size {
					fmt.Fprintln(os.Stderr, "taken:", stats.Samples)
					os.Exit(1)
				}
				break
			}
			fmt.Fprintln(os.Stderr, err)
			time.Sleep(20 * time.Millisecond)
		}
		fmt.Printf("acked %d %d\n", next, next+*size-1)
	}
}

// request holds samples of ten series whose values are their numbers.
func request(begin int64, next, size int) *writev2.Request {
	symbols := writev2.NewSymbolTable()
	request := &writev2.Request{}
	for n := next; n < next+size; n++ {
		labels := []string{"__name__", "numbered_bytes", "series", fmt.Sprintf("s%d", n%10)}
		request.Timeseries = append(request.Timeseries, &writev2.TimeSeries{
			LabelsRefs: symbols.SymbolizeLabels(labels, nil),
			Samples:    []*writev2.Sample{{Value: float64(n), Timestamp: begin + int64(n)}},
			Metadata: &writev2.Metadata{
				Type:    writev2.Metadata_METRIC_TYPE_COUNTER,
				HelpRef: symbols.Symbolize("Numbers."),
				UnitRef: symbols.Symbolize("bytes"),
			},
		})
	}
	request.Symbols = symbols.Symbols()
	return request
}
