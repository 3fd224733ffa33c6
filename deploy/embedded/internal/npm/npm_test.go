package npm_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/npm"
)

// machine is one whose npm runs a script.
func machine(t *testing.T, script string) {
	t.Helper()
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "npm"), []byte("#!/bin/sh\n"+script), 0o700))
	t.Setenv("PATH", bin+":/usr/bin:/bin")
}

func fetch(t *testing.T) (string, error) {
	t.Helper()
	p := npm.Package{Name: "@a/b", Version: "1.0.0", Integrity: "sha512-of what is pinned"}
	return p.Fetch(t.Context(), npm.Source{Progress: func(string, int64) {}}, t.TempDir())
}

// Without its reason, a machine that is offline or behind a proxy is told to install what it has.
func TestWhyNpmFailed(t *testing.T) {
	machine(t, `case "$*" in *--silent*) ;; *) echo "npm error code ECONNREFUSED" >&2 ;; esac; exit 1`)
	_, err := fetch(t)
	require.ErrorIs(t, err, npm.ErrUnavailable)
	require.ErrorContains(t, err, "ECONNREFUSED")
}

// What npm gives is checked, and a wrong package is no reason to ask elsewhere.
func TestAnotherPackageThanThePinnedOneIsRefused(t *testing.T) {
	machine(t, `while [ "$1" != --pack-destination ]; do shift; done; printf other > "$2/a-b-1.0.0.tgz"`)
	_, err := fetch(t)
	require.ErrorContains(t, err, "is not the pinned one")
	require.NotErrorIs(t, err, npm.ErrUnavailable)
}
