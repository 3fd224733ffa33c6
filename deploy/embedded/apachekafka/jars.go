package apachekafka

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the list of jars
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// version of Apache Kafka that pom.xml names.
const version = "4.3.1"

//go:embed pom.xml
var pom []byte

// jarSums has a line of sha256 and name for each jar, as sha256sum prints them.
//
//go:embed jars.sum
var jarSums string

// jar is a file that is pinned.
type jar struct{ name, sum string }

func pinnedJars() []jar {
	var list []jar
	for line := range strings.Lines(jarSums) {
		if sum, name, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
			list = append(list, jar{name, sum})
		}
	}
	return list
}

// classPath are the pinned jars, fetched when they are not in the cache.
func classPath(ctx context.Context, c Config) (string, error) {
	if c.CacheDir == "" {
		base, err := host.BaseDir("shelfwire")
		if err != nil {
			return "", err
		}
		c.CacheDir = base
	}
	cache, err := filepath.Abs(c.CacheDir) // the broker has another working directory
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "apache-kafka-"+version)
	err = host.Install(ctx, host.Installation{
		Dir:     dir,
		Waiting: func() { c.progress("Waiting for another process that fetches Apache Kafka %s", version) },
		Fill: func(ctx context.Context, tmp string) error {
			if err := fetch(ctx, c, tmp); err != nil {
				return err
			}
			return verify(tmp, pinnedJars())
		},
	})
	if err != nil {
		return "", err
	}
	var paths []string
	for _, j := range pinnedJars() {
		paths = append(paths, filepath.Join(dir, j.name))
	}
	return strings.Join(paths, string(os.PathListSeparator)), nil
}

// fetch has mvn copy the jars into dir. Its local repository is thrown away: what
// the user's has is not touched.
func fetch(ctx context.Context, c Config, dir string) error {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("no Maven to fetch it with: install it (Debian: apt-get install maven): %w", err)
	}
	c.progress("Fetching Apache Kafka %s (45 MB) with mvn, once", version)
	tmp, err := os.MkdirTemp("", "shelfwire-mvn-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	file := filepath.Join(tmp, "pom.xml")
	if err := os.WriteFile(file, pom, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mvn, "-q", "-B", "-C", "-f", file, "-Dmaven.repo.local="+filepath.Join(tmp, "repository"),
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+dir)
	cmd.Dir = tmp // not the caller's, which may have settings of its own
	if out, err := child.Output(cmd); err != nil {
		return fmt.Errorf("fetch Apache Kafka %s with mvn: %w: %.1000s", version, err, bytes.TrimSpace(out))
	}
	return nil
}

// verify holds the jars in dir against their pinned checksums. Others that may
// stand there are not put on the class path.
func verify(dir string, jars []jar) error {
	for _, j := range jars {
		f, err := os.Open(filepath.Join(dir, j.name))
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		_ = f.Close() // it was only read
		if err != nil {
			return fmt.Errorf("read %s: %w", j.name, err)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != j.sum {
			return fmt.Errorf("%s is not the pinned one: its sha256 is %s, expected %s", j.name, got, j.sum)
		}
	}
	return nil
}
