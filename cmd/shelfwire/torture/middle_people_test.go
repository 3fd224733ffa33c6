package torture

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// calmDown lets go what was stopped and puts the clock right. An earlier blow may have ended a connection of ours as well.
func (w *world) calmDown(ctx context.Context) error {
	err := errors.Join(w.letGo(ctx), w.setClock(ctx))
	for tries := 0; err != nil && tries < 10 && rest(ctx, 50*time.Millisecond); tries++ {
		err = errors.Join(w.letGo(ctx), w.setClock(ctx))
	}
	return err
}

// letGo takes back what people have stopped.
func (w *world) letGo(ctx context.Context) error {
	pauses, err := w.state.Paused(ctx)
	if err != nil {
		return err
	}
	for _, p := range pauses {
		if _, err := w.state.Resume(ctx, p.What); err != nil {
			return err
		}
	}
	excluded, err := w.state.Excluded(ctx)
	if err != nil {
		return err
	}
	for _, x := range excluded {
		if err := w.state.Include(ctx, x.ProductID, x.Shop, partitions); err != nil {
			return err
		}
	}
	return nil
}

// hurry makes what waits for a time due now, but for what waits for late requests, and releases what is held.
func (w *world) hurry(ctx context.Context) error {
	if err := w.setClock(ctx); err != nil {
		return err
	}
	holds, err := w.state.Holds(ctx)
	if err != nil {
		return err
	}
	for _, h := range holds {
		if err := w.state.ReleaseHold(ctx, h.Shop, h.Effect); err != nil {
			return err
		}
	}
	_, err = query[int](ctx, w.stateURL, `
		WITH woken AS (UPDATE parked SET due = clock_timestamp() WHERE due > clock_timestamp() AND reason <> 'LATE_REQUEST' RETURNING 1),
		probed AS (UPDATE shops SET next_probe = clock_timestamp() WHERE next_probe > clock_timestamp() RETURNING 1)
		SELECT 1 FROM woken UNION ALL SELECT 1 FROM probed`)
	return err
}

// stepClock sets the state's clock by an hour: what it has noted is older by that, or not yet.
func (w *world) stepClock(ctx context.Context, forward bool) error {
	by := "-1 hour"
	if !forward {
		by, w.shifted = "1 hour", true
	}
	return w.shift(ctx, by, "true")
}

// setClock puts the clock right again. Leases have to heal by themselves.
func (w *world) setClock(ctx context.Context) error {
	if !w.shifted {
		return nil
	}
	return w.shift(ctx, "-1 hour", "%s > clock_timestamp() + interval '40 minutes'")
}

func (w *world) shift(ctx context.Context, by, where string) error {
	for _, at := range [][2]string{{"leases", "expires"}, {"parked", "due"}, {"intents", "at"}, {"shops", "next_probe"}} {
		cond := where
		if strings.Contains(where, "%s") {
			cond = fmt.Sprintf(where, at[1])
		}
		sql := fmt.Sprintf(`UPDATE %s SET %s = %s + interval '%s' WHERE %s RETURNING 1`, at[0], at[1], at[1], by, cond)
		_, err := query[int](ctx, w.stateURL, sql)
		for tries := 0; err != nil && tries < 20 && rest(ctx, 50*time.Millisecond); tries++ { // rows in no order: it may lose a deadlock
			_, err = query[int](ctx, w.stateURL, sql)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
