package child

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

const (
	// startRetry is how long Serve tries against what passes with time.
	startRetry = 10 * time.Second
	// readyEvery is the time between two looks at whether a server is ready.
	readyEvery = 5 * time.Millisecond
)

// StartError is a server that did not become ready.
type StartError struct {
	Reason string
	Log    string // what it printed about that
}

func (e *StartError) Error() string { return e.Reason + ": " + e.Log }

// AwaitReady looks until ready says true. An error of ready, and the end of ctx,
// kill the child. One that ends by itself before that is a [StartError].
func (p *Process) AwaitReady(ctx context.Context, ready func() (bool, error)) error {
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.Kill()
			return ctx.Err()
		case <-p.done:
			return &StartError{Reason: fmt.Sprintf("it ended at once (%v)", p.err), Log: p.Log()}
		case <-tick.C:
			up, err := ready()
			if err != nil {
				p.Kill()
				return err
			}
			if up {
				return nil
			}
		}
	}
}

// Server is a child that has its directory to itself.
type Server struct {
	*Process
	free chan struct{}
}

// Serve returns what attempt has started. An attempt that ends in a [StartError]
// whose log has one of the passing reasons is made again, for 10 s: a port was
// taken between looking and binding, or the server of a killed parent is still
// shutting down. lock is on the server's directory: it is given up when the
// server has ended, and stays the caller's after an error.
func Serve(ctx context.Context, lock *host.Lock, passing []string, attempt func() (*Process, error)) (*Server, error) {
	deadline := time.Now().Add(startRetry)
	var last error
	for {
		p, err := attempt()
		if err == nil {
			s := &Server{Process: p, free: make(chan struct{})}
			go s.unlock(lock)
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, errors.Join(last, err)
		}
		if !passes(err, passing) || time.Now().After(deadline) {
			return nil, err
		}
		last = err
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func passes(err error, passing []string) bool {
	failed, ok := errors.AsType[*StartError](err)
	return ok && slices.ContainsFunc(passing, func(reason string) bool { return strings.Contains(failed.Log, reason) })
}

// unlock frees the directory before anyone learns of the end, so that whoever
// waits for Done can start again at once.
func (s *Server) unlock(lock *host.Lock) {
	<-s.done
	lock.Unlock()
	close(s.free)
}

// Done is closed when the server has ended, for whatever reason, and its
// directory is free for another start.
func (s *Server) Done() <-chan struct{} { return s.free }

// Stop is [Process.Stop], and waits until the directory is free.
func (s *Server) Stop(steps ...Step) error {
	err := s.Process.Stop(steps...)
	<-s.free
	return err
}

// Kill is [Process.Kill], and waits until the directory is free.
func (s *Server) Kill() {
	s.Process.Kill()
	<-s.free
}
