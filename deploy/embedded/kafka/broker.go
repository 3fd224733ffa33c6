// Package kafka runs a single-node Kafka in this process: franz-go's kfake,
// which speaks the real wire protocol (transactions, groups, compaction) and
// keeps its log in a directory. What it has acknowledged survives kill -9 of
// the process, not of the machine. It is a broker for demos and tests: one
// goroutine, no replication.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// Config of one broker.
type Config struct {
	// Dir keeps topics, groups and transactions between starts. It is created.
	// Empty keeps everything in memory.
	Dir string `json:"dir"`
	// Port on 127.0.0.1; 0 takes a free one. Clients find a restarted broker
	// only on the port that they know, which its metadata also names.
	Port int `json:"port"`
	// Topics are created, name to number of partitions, when Dir is still
	// empty. On a later start they are those of the directory.
	Topics map[string]int32 `json:"topics,omitempty"`
}

// lockGrace is how long a start waits for the end of another broker on its directory.
const lockGrace = 2 * time.Second

// Broker is a running broker.
type Broker struct {
	cluster *kfake.Cluster
	addr    string
	dir     string // empty: in memory
	lock    *host.Lock
	closed  sync.Once
}

// Start opens the directory and listens. Topics are never created by a mere
// request for them. The broker ends with [Broker.Close], or with the process.
func Start(ctx context.Context, c Config) (*Broker, error) {
	var lock *host.Lock
	opts := []kfake.Opt{kfake.ClusterID("shelfwire-embedded")}
	for topic, partitions := range c.Topics {
		if partitions < 1 {
			return nil, fmt.Errorf("start kafka: topic %s has %d partitions", topic, partitions)
		}
		opts = append(opts, kfake.SeedTopics(partitions, topic))
	}
	if c.Dir != "" {
		if err := os.MkdirAll(c.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("start kafka: %w", err)
		}
		// The kernel needs a moment to end a broker whose parent was killed.
		graceful, cancel := context.WithTimeout(ctx, lockGrace)
		defer cancel()
		var err error
		if lock, err = host.WaitLock(graceful, filepath.Join(c.Dir, "lock"), func() {}); err != nil {
			return nil, fmt.Errorf("start kafka: another one runs in %s: %w", c.Dir, err)
		}
		// A directory of its own below: kfake decides what its files are called.
		log := filepath.Join(c.Dir, "log")
		if err := recoverAfterCrash(c.Dir, log); err != nil {
			lock.Unlock()
			return nil, fmt.Errorf("start kafka: %w", err)
		}
		opts = append(opts, kfake.DataDir(log))
	}
	cluster, port, err := listen(ctx, c.Port, opts)
	if err != nil {
		lock.Unlock()
		return nil, fmt.Errorf("start kafka: %w", err)
	}
	return &Broker{cluster: cluster, addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), dir: c.Dir, lock: lock}, nil
}

// closedFile says that the broker of the directory was closed: open transactions were saved with it and go on.
const closedFile = "closed"

// recoverAfterCrash mends the log unless its last broker was closed.
func recoverAfterCrash(dir, log string) error {
	err := os.Remove(filepath.Join(dir, closedFile))
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return recoverLog(log)
}

// listen starts the cluster, on another free port when somebody took the first
// between looking and binding.
func listen(ctx context.Context, port int, opts []kfake.Opt) (*kfake.Cluster, int, error) {
	var errs []error
	for range 5 {
		p := port
		if p == 0 {
			var err error
			if p, err = host.FreePort(ctx); err != nil {
				return nil, 0, err
			}
		}
		cluster, err := kfake.NewCluster(append(opts, kfake.Ports(p))...)
		if err == nil {
			return cluster, p, nil
		}
		if errs = append(errs, err); port != 0 {
			break
		}
	}
	return nil, 0, errors.Join(errs...)
}

// Addr is the broker's host:port, to be given to clients as the seed.
func (b *Broker) Addr() string { return b.addr }

// Cluster gives access to kfake's fault injection. Closing it is left to
// [Broker.Close].
func (b *Broker) Cluster() *kfake.Cluster { return b.cluster }

// Close ends the broker and syncs its files. A second call does nothing.
func (b *Broker) Close() {
	b.closed.Do(func() {
		b.cluster.Close()
		if b.dir != "" {
			// Without the file the next start takes this for a crash, and aborts what is open.
			_ = os.WriteFile(filepath.Join(b.dir, closedFile), nil, 0o600)
		}
		b.lock.Unlock()
	})
}
