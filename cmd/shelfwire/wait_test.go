package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/connectors/postgres"
)

var errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}

func TestAwayIsToldFromAMistake(t *testing.T) {
	for _, err := range []error{
		errRefused, fmt.Errorf("x: %w", io.EOF), context.DeadlineExceeded, &net.DNSError{IsNotFound: true},
		&pgconn.PgError{Code: "57P03"}, &pgconn.PgError{Code: "53300"}, &pgconn.PgError{Code: "25006"},
		&postgres.QueryError{Err: io.EOF}, kerr.LeaderNotAvailable, &awayError{"standby"},
	} {
		require.True(t, away(fmt.Errorf("step: %w", err)), "%v", err)
	}
	for _, err := range []error{
		errors.New("bad"), &pgconn.PgError{Code: "28P01"}, &pgconn.PgError{Code: "3D000"}, &pgconn.PgError{Code: "42501"},
		&postgres.QueryError{SQLSTATE: "28P01", Err: &pgconn.PgError{Code: "28P01"}}, kerr.SaslAuthenticationFailed, kerr.PolicyViolation,
		&exitCode{exitUsage, errors.New("routes")},
	} {
		require.False(t, away(fmt.Errorf("step: %w", err)), "%v", err)
	}
}

func TestAStartWaitsForAServiceThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		a := &app{log: slog.New(slog.NewTextHandler(&log, nil)), options: options{wait: true}}
		began, tries := time.Now(), 0
		require.NoError(t, a.await(t.Context(), "Kafka", func(ctx context.Context) error {
			if tries++; time.Since(began) < time.Minute {
				if tries > 1 {
					require.ErrorContains(t, a.ready(ctx), "waiting for Kafka: dial tcp: connection refused")
				}
				return errRefused
			}
			return nil
		}))
		require.Less(t, time.Since(began), 66*time.Second)
		require.Less(t, tries, 20, "a service that starts is not hammered")
		require.Equal(t, 2, strings.Count(log.String(), "waiting for a service that is away"), "said at once and every half minute: %s", &log)
		require.Contains(t, log.String(), "the service answers")
		require.ErrorContains(t, a.ready(t.Context()), "starting")

		require.EqualError(t, a.await(t.Context(), "x", func(context.Context) error { return errors.New("bad") }), "bad")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("told to"))
		defer cancel()
		require.EqualError(t, a.await(ctx, "x", func(context.Context) error { return errRefused }), "told to")
		a.options.wait = false
		require.Equal(t, errRefused, a.await(t.Context(), "x", func(context.Context) error { return errRefused }))
	})
}

func TestAServiceIsNamedAtItsPlace(t *testing.T) {
	a := &app{cfg: &config.Config{}}
	for want, err := range map[string]error{
		"start the service, or correct host and port in state.url":         errRefused,
		"correct the host in state.url":                                    &net.DNSError{Err: "no such host"},
		"correct user and password in state.url":                           &pgconn.PgError{Code: "28P01"},
		"create the database":                                              &pgconn.PgError{Code: "3D000"},
		"see that the service runs and that this machine may reach it, or": context.DeadlineExceeded,
	} {
		require.ErrorContains(t, a.refused(t.Context(), "state.url", err), want)
	}
	_, err := pgconn.ParseConfig("hunter2")
	kind, e := a.serviceError("source.url", fmt.Errorf("source database: %w", err))
	require.Equal(t, postgres.FindingMistake, kind)
	require.ErrorContains(t, e, "source.url is no connection string of Postgres")
	require.NotContains(t, e.Error(), "hunter2", "an address is a secret")
}

func TestOneLine(t *testing.T) {
	require.Equal(t, "failed: a: dial error: refused b: dial error: refused",
		oneLine("failed: a: dial error: refused\n\ta:  dial error: refused\n\tb: dial error: refused\n"))
}
