package host

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := TryLock(path)
	require.NoError(t, err)
	_, err = TryLock(path)
	require.ErrorIs(t, err, ErrLocked)

	waits := 0
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = WaitLock(ctx, path, func() { waits++ })
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, 1, waits)

	l.Unlock()
	l.Unlock()
	again, err := WaitLock(t.Context(), path, func() { waits++ })
	require.NoError(t, err)
	require.Equal(t, 1, waits, "nothing to wait for")
	again.Unlock()
	(*Lock)(nil).Unlock()
}

// A client that retries on a port of the ephemeral range can be given that very
// port as its own, and then holds it against the server that wants it back.
func TestFreePortIsNotOneThatTheKernelGivesToClients(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	for range 20 {
		port, err := FreePort(t.Context())
		require.NoError(t, err)
		require.Less(t, port, 32768)
		taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		require.NoError(t, err)
		defer taken.Close()
	}
}

func TestMkdirAllWhateverTheUmask(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	base := t.TempDir()
	dir := filepath.Join(base, "a", "b")
	require.NoError(t, MkdirAll(dir))
	require.NoError(t, MkdirAll(dir))
	for _, d := range []string{dir, filepath.Dir(dir)} {
		fi, err := os.Stat(d)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o755), fi.Mode().Perm())
	}
	file := filepath.Join(base, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.Error(t, MkdirAll(file))
}

func TestCanReachNamesTheDirectoryInTheWay(t *testing.T) {
	stranger := &Account{name: "stranger", uid: 65533, gid: 65533}
	base := t.TempDir()
	closed := filepath.Join(base, "closed")
	dir := filepath.Join(closed, "dir")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.Chmod(closed, 0o700))
	require.ErrorContains(t, stranger.CanReach(dir), "cannot enter "+closed)
	require.NoError(t, (*Account)(nil).CanReach(dir), "the caller itself")
}

func TestBaseDirCanBeReached(t *testing.T) {
	account, err := Unprivileged()
	require.NoError(t, err)
	dir, err := BaseDir("shelfwire-test-base")
	require.NoError(t, err)
	defer os.Remove(dir)
	require.NoError(t, account.CanReach(dir))
	require.DirExists(t, dir)
}

func TestInstallLeavesNothingBehindAFailure(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	broken := errors.New("broken")
	err := Install(t.Context(), Installation{Dir: dir, Fill: func(_ context.Context, tmp string) error {
		return errors.Join(os.WriteFile(filepath.Join(tmp, "half"), nil, 0o600), broken)
	}})
	require.ErrorIs(t, err, broken)
	require.NoDirExists(t, dir)
	require.NoDirExists(t, dir+".partial")
}

func TestScratchOfTheDeadIsRemovedAndThatOfTheLivingStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "scratch")
	alive, err := NewScratch(t.Context(), dir)
	require.NoError(t, err)
	dead, err := NewScratch(t.Context(), dir)
	require.NoError(t, err)
	require.NotEqual(t, alive.Path, dead.Path)
	dead.lock.Unlock() // as the kernel does for a killed process

	next, err := NewScratch(t.Context(), dir)
	require.NoError(t, err)
	require.NoDirExists(t, dead.Path)
	require.DirExists(t, alive.Path)
	require.NoError(t, alive.Remove())
	require.NoError(t, next.Remove())
	require.NoDirExists(t, alive.Path)
}

func TestPasswordIsMadeOnceAndKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(file, nil, 0o600), "what a kill can leave")
	first, err := Password(file)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(first), 20)
	again, err := Password(file)
	require.NoError(t, err)
	require.Equal(t, first, again)
}
