package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every mistake of a command line is told in one line that says where to read on, with exit code 2, before any file
// or service is looked at.
func TestMistakesOfTheCommandLine(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"runn"}, `there is no command "runn" (did you mean run?); see shelfwire --help`},
		{[]string{"no-such-command", "--json"}, `there is no command "no-such-command"; see shelfwire --help`},
		{[]string{"--no-such-flag"}, "shelfwire has no flag --no-such-flag; see shelfwire --help"},
		{[]string{"run", "--no-such-flag"}, "run has no flag --no-such-flag; see shelfwire run --help"},
		{[]string{"run", "--conf", "x"}, "run has no flag --conf (did you mean --config?); see shelfwire run --help"},
		{[]string{"run", "-x"}, "run has no flag -x; see"},
		{[]string{"run", "--only"}, "--only needs a value; see"},
		{[]string{"run", "--only", "capture,psh"}, `--only: "psh" is no role (did you mean push?); roles are capture, expand, push, relay, load; see`},
		{[]string{"run", "extra"}, `run takes no "extra"; see shelfwire run --help`},
		{[]string{"demo", "extra"}, `demo takes no "extra"; see`},
		{[]string{"demo", "--for", "-5s"}, "--for -5s: give a time such as 20s; see"},
		{[]string{"demo", "--for", "5"}, "--for 5: give a time such as 500ms, 20s or 5m; see"},
		{[]string{"demo", "--products", "many"}, "--products many: give a whole number; see"},
		{[]string{"demo", "--products", "0"}, "--products 0: give at least 3; see"},
		{[]string{"batches", "a", "b"}, "batches takes one batch id, and was given 2: a b; see"},
		{[]string{"init", "a", "b"}, "init takes one directory, and was given 2: a b; see"},
		{[]string{"replay"}, "name the products to push again: --product ID; see"},
		{[]string{"replay", "--wait", "3", "--product", "1"}, "--wait 3: give a time"},
		{[]string{"audit", "--prodct", "3"}, "audit has no flag --prodct (did you mean --product?); see"},
		{[]string{"holds", "--release", "x", "--reject", "y"}, "--release and --reject: give one of them; see"},
		{[]string{"holds", "--release", "x"}, `"x" is no hold: write SHOP/EFFECT, such as main/`},
		{[]string{"pause", "--all", "--shop", "x"}, "--all, --shop, --lane and --campaign: give one of them; see"},
		{[]string{"resume", "--lane", "liv"}, `--lane: "liv" is no lane (did you mean live?); lanes are live, content, retry, campaign; see`},
		{[]string{"exclude", "--shop", "x"}, "--shop needs a product; see"},
		{[]string{"campaigns", "--cancel"}, "--cancel: name the campaign; see"},
		{[]string{"batches", "--retry"}, "--cancel and --retry: name the batch; see"},
		{[]string{"batches", "b", "--retry", "--cancel"}, "--cancel and --retry: give one of them; see"},
		{[]string{"shop", "--plan", "free"}, `--plan: plan "free" is none of standard, advanced, plus, enterprise; see`},
		{[]string{"shop", "--shop", "=Hamburg"}, `--shop "=Hamburg": write NAME or NAME=LOCATION,LOCATION`},
		{[]string{"shop", "--shop", "north="}, `--shop "north=": write NAME`},
		{[]string{"shop", "--shop", "a", "--shop", "a=B"}, `--shop a is given twice; see`},
		{[]string{"check", "-c", "none.yaml"}, "none.yaml: there is no such file; name one with -c, or let shelfwire init write one to start from"},
		{[]string{"bench", "extra"}, "extra"},
	} {
		code, out := shelfwire(t, tt.args...)
		require.Equal(t, exitUsage, code, "%v: %s", tt.args, out)
		require.Contains(t, out, "shelfwire: ", "%v", tt.args)
		require.Contains(t, out, tt.want, "%v: %s", tt.args, out)
	}
}

func TestHelp(t *testing.T) {
	code, root := shelfwire(t)
	require.Equal(t, exitOK, code)
	for _, c := range []string{"run", "init", "check", "audit", "replay", "batches", "holds", "campaigns", "pause", "resume", "exclude", "include", "shop", "demo", "bench"} {
		require.Contains(t, root, "\n  "+c)
		code, out := shelfwire(t, c, "--help")
		require.Equal(t, exitOK, code)
		require.Contains(t, out, "shelfwire "+c)
	}
}

// A file or directory of the user's that cannot be used is told by its name.
func TestFilesThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	code, out := shelfwire(t, "check", "-c", file)
	require.Equal(t, exitUsage, code)
	require.Contains(t, out, file+": the file is empty")
	code, out = shelfwire(t, "check", "-c", filepath.Dir(file))
	require.Equal(t, exitUsage, code)
	require.Contains(t, out, "is a directory")
	code, out = shelfwire(t, "init", filepath.Join(file, "sub"))
	require.Equal(t, exitError, code)
	require.Contains(t, out, file)
}
