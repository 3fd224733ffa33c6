package child_test

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// attempt starts a script that is ready when it prints that.
func attempt(ctx context.Context, t *testing.T, script string) (*child.Process, error) {
	t.Helper()
	p, err := child.Start(exec.Command("/bin/sh", "-c", script), filepath.Join(t.TempDir(), "log"), syscall.SIGKILL) //nolint:noctx // as a server does, it outlives its start
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	return p, p.AwaitReady(ctx, func() (bool, error) { return strings.Contains(p.Log(), "ready"), nil })
}

const serving = "echo ready; exec sleep 60"

// What passes with time is tried again, what does not is told at once, and then the directory is still the caller's.
func TestServeTriesAgainWhatPasses(t *testing.T) {
	lockFile := filepath.Join(t.TempDir(), "lock")
	lock, err := host.TryLock(lockFile)
	require.NoError(t, err)
	defer lock.Unlock()
	scripts := []string{"echo port in use; exit 1", "echo port in use; exit 1", "echo broken; exit 1", serving}
	attempts := 0
	next := func() (*child.Process, error) {
		attempts++
		return attempt(t.Context(), t, scripts[attempts-1])
	}

	_, err = child.Serve(t.Context(), lock, []string{"port in use"}, next)
	var failed *child.StartError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, "broken", failed.Log)
	require.Equal(t, 3, attempts)
	_, err = host.TryLock(lockFile)
	require.ErrorIs(t, err, host.ErrLocked)

	s, err := child.Serve(t.Context(), lock, nil, next)
	require.NoError(t, err)
	select {
	case <-s.Done():
		t.Fatal("it has not ended")
	default:
	}
	s.Kill()
	<-s.Done()
	again, err := host.TryLock(lockFile)
	require.NoError(t, err, "free once the end is known")
	again.Unlock()
}

// A start that is given up leaves no process behind, and says what it was waiting for.
func TestServeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var hanging *child.Process
	_, err := child.Serve(ctx, nil, []string{"port in use"}, func() (*child.Process, error) {
		if hanging == nil {
			hanging, _ = attempt(t.Context(), t, "echo port in use; exit 1")
			return nil, &child.StartError{Log: hanging.Log()}
		}
		time.AfterFunc(20*time.Millisecond, cancel)
		p, err := attempt(ctx, t, "exec sleep 60")
		hanging = p
		return p, err
	})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "port in use")
	<-hanging.Done()
}

func TestAServerThatSaysItCannotIsKilled(t *testing.T) {
	p, err := child.Start(exec.CommandContext(t.Context(), "/bin/sh", "-c", serving), filepath.Join(t.TempDir(), "log"), syscall.SIGKILL)
	require.NoError(t, err)
	cannot := errors.New("cannot listen")
	require.ErrorIs(t, p.AwaitReady(t.Context(), func() (bool, error) { return false, cannot }), cannot)
	<-p.Done()
}
