package main

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/shelfwire/shelfwire/connectors/postgres"
)

// The pauses between attempts at a service that is away at the start, how long one attempt to reach it may take, and
// how often it is said that it is still awaited.
const (
	awaitFirst   = 250 * time.Millisecond
	awaitLast    = 5 * time.Second
	awaitTimeout = 10 * time.Second
	awaitRemind  = 30 * time.Second
)

// attempt bounds the time of reaching a service. A host that drops packets would be waited for minutes.
func attempt(ctx context.Context, reach func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	return reach(ctx)
}

// await takes a step of the start. While the service that it needs is away it says so and tries again, if the options
// ask for that; what is wrong for good ends it. A stop ends it with the stop's cause.
func (a *app) await(ctx context.Context, service string, step func(context.Context) error) error {
	defer a.waiting.Store(nil)
	var said time.Time
	for pause := awaitFirst; ; pause = min(2*pause, awaitLast) {
		err := step(ctx)
		switch {
		case err == nil && !said.IsZero():
			a.log.InfoContext(ctx, "the service answers", "service", service)
			return nil
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !a.options.wait || !away(err):
			return err
		}
		reason := oneLine(err.Error())
		text := service + ": " + reason
		if old := a.waiting.Swap(&text); old == nil || *old != text || time.Since(said) > awaitRemind {
			a.log.WarnContext(ctx, "waiting for a service that is away", "service", service, "reason", reason)
			said = time.Now()
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// away reports whether an error says that a service cannot be reached or is not ready, so that the same may succeed
// later with nobody correcting anything here.
func away(err error) bool {
	if _, ok := errors.AsType[*awayError](err); ok {
		return true
	}
	if q, ok := errors.AsType[*postgres.QueryError](err); ok {
		return q.Temporary()
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// connection exceptions, too many connections, shutting down or starting, a standby
		return strings.HasPrefix(pg.Code, "08") || slices.Contains([]string{"53300", "57P01", "57P02", "57P03", "25006"}, pg.Code)
	}
	if k, ok := errors.AsType[*kerr.Error](err); ok {
		return k.Retriable
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return connecting || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded)
}

// oneLine is a text without line breaks. Drivers list each address of a host, and each attempt at it, on a line of its
// own; what has been said already is left out.
func oneLine(s string) string {
	var parts []string
	for line := range strings.SplitSeq(s, "\n") {
		line = strings.Join(strings.Fields(line), " ")
		if line != "" && !slices.ContainsFunc(parts, func(p string) bool { return strings.HasSuffix(p, line) }) {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, " ")
}
