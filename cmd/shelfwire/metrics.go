package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/shelfwire/shelfwire/pipeline"
)

// registry is what /metrics shows.
type registry struct {
	*prometheus.Registry
	latency prometheus.Histogram
	steps   *prometheus.HistogramVec
}

func newRegistry() *registry {
	r := &registry{
		Registry: prometheus.NewRegistry(),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "shelfwire_commit_to_shop_seconds",
			Help:    "Time from the commit of a push's first change to the shop's answer.",
			Buckets: []float64{.25, .5, .6, .7, .8, 1, 1.5, 2, 3, 5, 10, 30, 60, 300, 1800},
		}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "shelfwire_step_seconds",
			Help:    "Length of each step of a push, from the commit of its first change until it stands in ClickHouse.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600},
		}, []string{"step"}),
	}
	for _, step := range append(pipeline.PushSteps(), pipeline.StepSettledToClickHouse) {
		r.steps.WithLabelValues(step) // shown from the start
	}
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), r.latency, r.steps)
	return r
}

// counter and gauge export a number that a stage keeps.
func (r *registry) counter(name, help string, load func() int64) {
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "shelfwire_" + name, Help: help},
		func() float64 { return float64(load()) }))
}

func (r *registry) gauge(name, help string, load func() float64) {
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "shelfwire_" + name, Help: help}, load))
}

// waiting exports whether a stage stands still, 1 or 0. The log says why, once for each reason. topic is empty where all
// of the stage waits. What all of them wait for, the brokers, counts as the stage kafka.
func (r *registry) waiting(stage, topic string, is func() bool) {
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shelfwire_waiting", Help: "1 while a stage waits for a service that is away; the log says for which, and why.",
		ConstLabels: prometheus.Labels{"stage": stage, "topic": topic},
	}, func() float64 {
		if is() {
			return 1
		}
		return 0
	}))
}

func (r *registry) step(step string, d time.Duration) {
	r.steps.WithLabelValues(step).Observe(d.Seconds())
}

// push exports a push worker's statistics.
func (r *registry) push(s *pipeline.PushStats) {
	s.Latency = func(d time.Duration) { r.latency.Observe(d.Seconds()) }
	s.Step = r.step
	r.counter("push_changes_total", "Live changes taken from Kafka.", s.Consumed.Load)
	r.counter("push_parked_total", "Products parked in the state.", s.Parked.Load)
	r.counter("push_rounds_total", "Rounds of due products.", s.Rounds.Load)
	r.counter("push_documents_queries_total", "Documents queries.", s.Reads.Load)
	r.counter("push_seen_before_total", "Changes that an earlier read had seen already.", s.SeenBefore.Load)
	r.counter("push_not_yet_visible_total", "Reads that did not see the transaction that asked for them.", s.NotYetVisible.Load)
	r.counter("push_dropped_total", "Products without a row that no shop knows.", s.Dropped.Load)
	r.counter("push_coalesced_total", "Changes that shared another change's push.", s.Coalesced.Load)
	r.counter("push_succeeded_total", "Pushes that a shop took.", s.Succeeded.Load)
	r.counter("push_failed_total", "Pushes that failed for good.", s.Failed.Load)
	r.counter("push_skipped_total", "Pushes that needed no call.", s.Skipped.Load)
	r.counter("push_retried_total", "Pushes that wait for another attempt.", s.Retried.Load)
	r.counter("push_held_total", "Pushes that the guard holds.", s.Held.Load)
	r.counter("push_points_total", "Points that shops charged.", s.Points.Load)
	r.gauge("push_hot", "Products that wait in memory.", func() float64 { return float64(s.Hot.Load()) })
	r.gauge("push_flying", "Products on their way to a shop.", func() float64 { return float64(s.Flying.Load()) })
	r.gauge("push_partitions", "Partitions whose lease this process holds.", func() float64 { return float64(s.Owned.Load()) })
}

// serveMetrics answers /metrics, /healthz, /readyz and /debug/pprof until ctx ends. ready says what is not ready
// yet; nil when all is.
func serveMetrics(ctx context.Context, listen string, r *registry, ready func(context.Context) error, log *slog.Logger) error {
	if listen == "off" {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, req *http.Request) { answer(w, ready(req.Context())) })
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "metrics and health", "address", l.Addr().String())
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func answer(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	status := map[string]string{"status": "ok"}
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		status = map[string]string{"status": "not ready", "reason": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(status)
}
