package apachekafka

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
)

// oldestJava is what Apache Kafka 4 asks for.
const oldestJava = 17

var javaVersion = regexp.MustCompile(` version "(\d+)`)

// findJava returns the program to run, of a version that will do.
func findJava(ctx context.Context, named string) (string, error) {
	if named == "" {
		named = "java"
	}
	java, err := exec.LookPath(named)
	if err != nil {
		return "", fmt.Errorf("no Java: install a runtime, %d or newer (Debian: apt-get install openjdk-%d-jre-headless): %w", oldestJava, oldestJava, err)
	}
	out, err := exec.CommandContext(ctx, java, "-version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s -version: %w: %s", java, err, bytes.TrimSpace(out))
	}
	m := javaVersion.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s -version says %q", java, out)
	}
	if major, err := strconv.Atoi(string(m[1])); err != nil || major < oldestJava {
		return "", fmt.Errorf("%s is Java %s, and %d or newer is needed (Debian: apt-get install openjdk-%d-jre-headless)", java, m[1], oldestJava, oldestJava)
	}
	return java, nil
}

// machine is a Java machine with Kafka's classes.
type machine struct {
	java, classPath string
	options         []string
}

// args run a class.
func (m machine) args(class string, more ...string) []string {
	return slices.Concat(m.options, []string{
		"-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
		"-cp", m.classPath, class,
	}, more)
}

// format prepares the log directory, once, and returns the id of its cluster.
// What a killed one has left is formatted anew.
func (s store) format(ctx context.Context, c Config, m machine) (cluster string, err error) {
	id, err := os.ReadFile(s.formatted())
	if err == nil {
		return string(id), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.RemoveAll(s.logs()); err != nil {
		return "", err
	}
	if cluster, err = newClusterID(); err != nil {
		return "", err
	}
	if err := s.write(settings(c, s.logs(), 1, 2)); err != nil { // ports mean nothing to it
		return "", err
	}
	cmd := exec.CommandContext(ctx, m.java, m.args("kafka.tools.StorageTool", "format", "--config", s.settings(), "--cluster-id", cluster)...)
	cmd.Dir = s.dir
	if out, err := child.Output(cmd); err != nil {
		return "", fmt.Errorf("format: %w: %s", err, bytes.TrimSpace(out))
	}
	tmp := s.formatted() + ".partial"
	if err := os.WriteFile(tmp, []byte(cluster), 0o600); err != nil {
		return "", err
	}
	return cluster, os.Rename(tmp, s.formatted())
}

// newClusterID writes 16 random bytes as Kafka does, which takes a leading dash
// for an option.
func newClusterID() (string, error) {
	for {
		var b [16]byte
		if _, err := rand.Read(b[:]); err != nil {
			return "", err
		}
		if id := base64.RawURLEncoding.EncodeToString(b[:]); !strings.HasPrefix(id, "-") {
			return id, nil
		}
	}
}
