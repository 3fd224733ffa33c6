package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// readable measures how long after its commit a change can be read from Kafka by a reader of committed records, while
// a thousand transactions a second come. p50 and p99 are the goals, in ms.
func (r *captureRig) readable(ctx context.Context, p50, p99 float64) ([]figure, error) {
	const rate = 1000
	seconds := r.b.few(10, 1)
	r.b.say("capture: %d transactions a second for %d s", rate, seconds)
	// What the loads have left behind would be cleaned up in these seconds.
	if err := r.exec(ctx, `VACUUM (ANALYZE) products, bulk`, `CHECKPOINT`); err != nil {
		return nil, err
	}
	r.runs++
	slot := fmt.Sprintf("run_%d", r.runs)
	if err := r.exec(ctx, fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, slot)); err != nil {
		return nil, err
	}
	cluster, err := r.topics(ctx, slot, nil)
	if err != nil {
		return nil, err
	}
	defer cluster.Close()
	file, _, err := r.writeConfig(ctx, slot, nil)
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	err = withRun(ctx, []string{"-c", file, "--only", "capture"}, func(ctx context.Context, _ *process) error {
		took, err = r.read(ctx, cluster, rate, seconds)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(took)
	how := fmt.Sprintf("%d one-row transactions, %d a second; from the commit's time in the WAL, which is before it is flushed, until a "+
		"read_committed reader in another process has the record; broker (%s) in a process of its own", len(took), rate, r.broker.kind)
	return []figure{
		atMost("commit to readable at 1,000 transactions/s, p50"+r.broker.label, milliseconds(quantile(took, 0.5)), "ms", p50, how),
		atMost("commit to readable at 1,000 transactions/s, p99"+r.broker.label, milliseconds(quantile(took, 0.99)), "ms", p99, how),
	}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// read reads while others write, and returns how old each record was when it came. The first second warms up.
func (r *captureRig) read(ctx context.Context, cluster *kafka.Cluster, rate, seconds int) (took []time.Duration, err error) {
	reader, err := cluster.NewReader(cluster.Topic(event.Changes))
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	for p := range cluster.Partitions() {
		reader.Add(p, 0)
	}
	pool, err := pgxpool.New(ctx, r.url)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	all := rate * (seconds + 1)
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute+time.Duration(seconds)*time.Second, errors.New("not all changes were in Kafka in time"))
	defer cancel()
	wrote := make(chan error, 1)
	go func() {
		wrote <- pace(ctx, all, time.Second/time.Duration(rate), func(i int) error {
			_, err := pool.Exec(ctx, `UPDATE products SET qty = qty + 1 WHERE id = $1`, i%captureProducts+1)
			return err
		})
	}()
	for n := 0; n < all; {
		records, err := reader.Poll(ctx, 1000)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		for i := range records {
			if n++; n <= rate {
				continue
			}
			text, _ := records[i].Header(event.HeaderCommitted)
			us, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("header %s: %w", event.HeaderCommitted, err)
			}
			took = append(took, now.Sub(time.UnixMicro(us)))
		}
	}
	return took, <-wrote
}
