package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// leaseStore keeps leases; sinks/state implements it.
type leaseStore interface {
	// Renew prolongs the owner's leases of a stage, takes free ones up to a fair share, and returns all it holds.
	Renew(ctx context.Context, stage work.Stage, owner string, partitions int32, ttl time.Duration) ([]work.Lease, error)
	Release(ctx context.Context, fences []work.Fence) error
}

// LeaseConfig says how a stage keeps its leases.
type LeaseConfig struct {
	// Owner names this worker; it must be unique among all that run, and new at every start.
	Owner string
	// TTL is how long a lease outlives its holder's last renewal. Shorter hands the work of a killed worker over
	// sooner and tolerates shorter pauses. Default 30 s.
	TTL time.Duration
	// Every is the pause between renewals. Default TTL/20, at most 1.5 s: it is also how long a new worker waits
	// for its first leases. More than TTL/20, and a worker without leases is not seen all the time.
	Every time.Duration
}

func (c LeaseConfig) withDefaults() LeaseConfig {
	if c.TTL == 0 {
		c.TTL = 30 * time.Second
	}
	if c.Every == 0 {
		c.Every = min(c.TTL/20, 1500*time.Millisecond)
	}
	return c
}

// heldLease is a lease as its holder may rely on it.
type heldLease struct {
	work.Lease
	// until is by this process's own clock, counted from before the renewal was asked for, so that it never lies
	// after the end that the state knows.
	until time.Time
}

// leaseKeeper renews the leases of one stage and reports all that it holds after each renewal.
type leaseKeeper struct {
	store      leaseStore
	stage      work.Stage
	partitions int32
	cfg        LeaseConfig
	log        *slog.Logger

	last []work.Fence // of the newest renewal; nil before the first: run's own until it has returned
}

// leaseStop is how long a stop waits for the state: once for a renewal that is on its way, and once for the release.
// Neither is owed, as leases end by themselves.
const leaseStop = 2 * time.Second

// run renews until ctx ends. A renewal that does not succeed changes nothing: the holder sees its leases run out. It
// goes on while the holder is busy, which hears of the newest renewal only: a page of a fan-out may take longer than a
// lease.
func (k *leaseKeeper) run(ctx context.Context, held chan<- []heldLease) error {
	tick := time.NewTicker(k.cfg.Every)
	defer tick.Stop()
	var news []heldLease
	var to chan<- []heldLease // nil while there is no news
	for {
		start := time.Now()
		leases, err := k.renew(ctx)
		switch {
		case err == nil:
			news, to, k.last = make([]heldLease, len(leases)), held, make([]work.Fence, len(leases))
			for i, l := range leases {
				news[i], k.last[i] = heldLease{Lease: l, until: start.Add(k.cfg.TTL)}, l.Fence
			}
		case ctx.Err() == nil:
			k.log.WarnContext(ctx, "lease renewal", "stage", string(k.stage), "error", err)
		}
		for waits := true; waits; {
			select {
			case to <- news:
				to = nil
			case <-tick.C:
				waits = false
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// renew asks for the leases. One that is on its way when ctx ends is awaited for a moment: if it were cut short, the
// state could carry it out after the leases were given back, and nobody would hold them until they end.
func (k *leaseKeeper) renew(ctx context.Context) ([]work.Lease, error) {
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.cfg.TTL/2)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(leaseStop, cancel) })()
	return k.store.Renew(rctx, k.stage, k.cfg.Owner, k.partitions, k.cfg.TTL)
}

// release gives back all that the newest renewal has brought, known to the holder or not, and withdraws what the worker
// waits for: what others give up for it would lie idle. It must only be called when run has returned and the holder has
// settled what it had in hand.
func (k *leaseKeeper) release(ctx context.Context) {
	if k.last == nil {
		return // the state has never heard of it
	}
	all := append(k.last, work.Fence{Stage: k.stage, Partition: work.AllPartitions, Owner: k.cfg.Owner})
	ctx, cancel := context.WithTimeout(ctx, leaseStop)
	defer cancel()
	if err := k.store.Release(ctx, all); err != nil {
		k.log.WarnContext(ctx, "leases not released; they end by themselves", "stage", string(k.stage), "error", err)
	}
}

// retry calls f until it succeeds, ctx ends, or the error is one that trying again cannot mend. It pauses 50 ms at
// first and at most 2 s between calls, so that a service that is away is neither hammered nor kept waiting for long.
func retry(ctx context.Context, log *slog.Logger, what string, f func(context.Context) error) error {
	pause := 50 * time.Millisecond
	for {
		err := f(ctx)
		var perm interface{ Permanent() bool }
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, work.ErrLeaseLost), errors.As(err, &perm) && perm.Permanent():
			return err
		}
		log.WarnContext(ctx, "waiting to try again", "what", what, "pause", pause, "error", err)
		if !sleep(ctx, pause) {
			return context.Cause(ctx)
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// sleep waits and reports whether ctx still stands.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
