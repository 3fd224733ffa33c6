package torture

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// results writes a line for each schedule to the file that SHELFWIRE_TORTURE_RESULTS names, if it names one.
type results struct {
	file string
	tree string
}

func openResults(t *testing.T) *results {
	t.Helper()
	r := &results{file: os.Getenv("SHELFWIRE_TORTURE_RESULTS"), tree: "unknown"}
	if out, err := exec.CommandContext(t.Context(), "git", "rev-parse", "--short=12", "HEAD^{tree}").Output(); err == nil {
		r.tree = strings.TrimSpace(string(out))
	}
	return r
}

// add books the result of a schedule.
func (r *results) add(t *testing.T, seed uint64, line string) {
	t.Helper()
	verdict := "clean"
	if t.Failed() {
		verdict = "FAILED"
	}
	t.Log(verdict + ": " + line)
	if r.file == "" {
		return
	}
	f, err := os.OpenFile(r.file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) //nolint:gosec // read by everybody
	require.NoError(t, err)
	_, err = fmt.Fprintf(f, "tree %s, seed %d, %s: %s\n", r.tree, seed, verdict, line)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}
