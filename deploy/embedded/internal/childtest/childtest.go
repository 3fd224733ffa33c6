// Package childtest proves that a server does not outlive a parent that was
// killed and could clean nothing up.
package childtest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
)

const role = "parent"

// Hook belongs into TestMain, before anything else that may start servers. start
// runs a server on a directory and returns once that is ready.
func Hook(start func(dir string) (pid int, err error)) {
	var dir string
	child.Hook(role, &dir, func() error {
		pid, err := start(dir)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(os.NewFile(3, "ready"), pid); err != nil {
			return err
		}
		select {} // until killed
	})
}

// KillParent has a process of its own start the server of [Hook] on dir, kills
// that process with SIGKILL and waits until nothing is left that works in dir.
// Nobody is there to be asked for an orderly end.
func KillParent(t *testing.T, dir string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells children of the death of their parent")
	}
	ready, childReady, err := os.Pipe()
	require.NoError(t, err)
	defer ready.Close()
	cmd, err := child.Reexec(role, dir)
	require.NoError(t, err)
	cmd.ExtraFiles = []*os.File{childReady}
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	require.NoError(t, childReady.Close())
	line := make([]byte, 32)
	n, err := ready.Read(line)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		require.NotErrorIs(t, err, io.EOF, "the parent could not start the server")
		require.NoError(t, err)
	}
	pid := strings.TrimSpace(string(line[:n]))
	require.Contains(t, workingIn(t, dir), pid, "the server is not seen to work in %s, so its end would prove nothing", dir)

	require.NoError(t, cmd.Process.Kill())
	require.ErrorContains(t, cmd.Wait(), "killed")
	require.Eventually(t, func() bool { return len(workingIn(t, dir)) == 0 }, 10*time.Second, 5*time.Millisecond)
}

// workingIn are the processes that have dir in their working directory's path or
// in their arguments.
func workingIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	var found []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		cwd, _ := os.Readlink(filepath.Join(proc, "cwd"))      // gone meanwhile, or a zombie: empty
		args, _ := os.ReadFile(filepath.Join(proc, "cmdline")) // as above
		if strings.HasPrefix(cwd, dir) || strings.Contains(string(args), dir) {
			found = append(found, e.Name())
		}
	}
	return found
}
