package child_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
)

// shell starts a script and waits until it has printed "ready".
func shell(t *testing.T, logFile, script string) *child.Process {
	t.Helper()
	p, err := child.Start(exec.CommandContext(t.Context(), "/bin/sh", "-c", script), logFile, syscall.SIGKILL)
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	require.Eventually(t, func() bool { return strings.Contains(p.Log(), "ready") }, 10*time.Second, time.Millisecond)
	return p
}

func TestStopInSteps(t *testing.T) {
	log := func(t *testing.T) string { t.Helper(); return filepath.Join(t.TempDir(), "log") }
	t.Run("the first step is enough", func(t *testing.T) {
		p := shell(t, log(t), `trap "exit 0" INT; echo ready; while :; do sleep 0.01; done`)
		require.NoError(t, p.Stop(p.Signal(syscall.SIGINT, time.Minute)))
		require.NoError(t, p.Stop(), "it has ended")
	})
	t.Run("a failing end is told", func(t *testing.T) {
		p := shell(t, log(t), `trap "exit 3" INT; echo ready; while :; do sleep 0.01; done`)
		require.ErrorContains(t, p.Stop(p.Signal(syscall.SIGINT, time.Minute)), "exit status 3")
	})
	t.Run("the second step", func(t *testing.T) {
		p := shell(t, log(t), `trap "" INT; trap "exit 0" TERM; echo ready; while :; do sleep 0.01; done`)
		err := p.Stop(p.Signal(syscall.SIGINT, 20*time.Millisecond), p.Signal(syscall.SIGTERM, time.Minute))
		require.ErrorContains(t, err, "the hard way")
	})
	t.Run("killed in the end", func(t *testing.T) {
		p := shell(t, log(t), `trap "" INT; echo ready; while :; do sleep 0.01; done`)
		require.ErrorContains(t, p.Stop(p.Signal(syscall.SIGINT, 20*time.Millisecond)), "had to be killed")
		<-p.Done()
	})
}

// A log file is appended to by one run after another; each sees its own.
func TestLogIsOfThisRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	<-shell(t, file, "echo ready; echo first").Done()
	second := shell(t, file, "echo ready; echo second >&2")
	<-second.Done()
	require.Equal(t, "ready\nsecond", second.Log())
	all, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(all), "first")
}

func TestAMissingProgram(t *testing.T) {
	_, err := child.Start(exec.CommandContext(t.Context(), "/nonexistent/program"), filepath.Join(t.TempDir(), "log"), syscall.SIGKILL)
	require.ErrorIs(t, err, os.ErrNotExist)
}
