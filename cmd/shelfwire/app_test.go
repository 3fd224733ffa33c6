package main

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
)

// An error of one part ends the process and is told: it is the cause of the group's own end, and no stop.
func TestRunTellsWhatEndedIt(t *testing.T) {
	a := &app{
		cfg: &config.Config{Metrics: config.Metrics{Listen: "127.0.0.1:none"}}, log: slog.New(slog.DiscardHandler), metrics: newRegistry(),
	}
	require.ErrorContains(t, a.run(t.Context()), "metrics.listen")
}

func TestAStopIsNoError(t *testing.T) {
	a := &app{
		cfg: &config.Config{Metrics: config.Metrics{Listen: "127.0.0.1:0"}}, log: slog.New(slog.DiscardHandler), metrics: newRegistry(),
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, a.run(ctx))
}
