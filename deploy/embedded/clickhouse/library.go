package clickhouse

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// The library is published to npm: libchdb.so of ClickHouse 26.7.2.1, 178 MB
// packed, 566 MB unpacked. For arm64 no package was found.
const (
	libPackage   = "@chdb/lib-linux-x64-gnu"
	libVersion   = "26.7.3-stable.1"
	libIntegrity = "sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw=="
	libFile      = "package/libchdb.so"
	libPacked    = 178 // MB
)

// ErrNoLibrary says that libchdb was neither found nor could be fetched. The
// message says what to install.
var ErrNoLibrary = errors.New("no ClickHouse engine found, and none could be fetched")

// library returns the path of libchdb.so: the one that the user names, or the
// pinned one, which is fetched and checked once and then kept.
func library(ctx context.Context, c Config) (string, error) {
	if c.LibPath != "" {
		lib, err := filepath.Abs(c.LibPath) // the engine has another working directory
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(lib); err != nil {
			return "", fmt.Errorf("no ClickHouse engine: %w", err)
		}
		return lib, nil
	}
	if c.CacheDir == "" {
		base, err := host.BaseDir("shelfwire")
		if err != nil {
			return "", err
		}
		c.CacheDir = base
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return "", fmt.Errorf("%w: there is no package for %s/%s: name the address of a running ClickHouse or the path of a libchdb.so", ErrNoLibrary, runtime.GOOS, runtime.GOARCH)
	}
	cache, err := filepath.Abs(c.CacheDir) // the engine has another working directory
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "libchdb-"+libVersion)
	lib := filepath.Join(dir, "libchdb.so")
	if _, err := os.Stat(lib); err == nil {
		return lib, nil
	}
	return lib, install(ctx, c, dir, libIntegrity)
}

// install puts the library of the package with that checksum into dir.
// Processes that need it at the same time wait for the first one.
func install(ctx context.Context, c Config, dir, integrity string) error {
	return host.Install(ctx, host.Installation{
		Dir:     dir,
		Waiting: func() { c.progress("Waiting for another process that fetches the ClickHouse engine") },
		Fill:    func(ctx context.Context, tmp string) error { return fill(ctx, c, tmp, integrity) },
	})
}

// fill puts libchdb.so, and nothing else, into dir. A source that gives
// something else is an error, never a reason to ask the next one quietly.
func fill(ctx context.Context, c Config, dir, integrity string) error {
	tarball, from := c.Tarball, c.Tarball
	if tarball == "" {
		// Beside what is to stay, not in /tmp, which may be small and in memory.
		download, err := os.MkdirTemp(dir, "download-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(download)
		if tarball, from, err = fetch(ctx, c, download); err != nil {
			return err
		}
	}
	if err := check(tarball, from, integrity); err != nil {
		return err
	}
	c.progress("Unpacking the ClickHouse engine (566 MB)")
	return extract(tarball, filepath.Join(dir, "libchdb.so"))
}

func fetch(ctx context.Context, c Config, dir string) (tarball, from string, err error) {
	var errs []error
	if npm, err := exec.LookPath("npm"); err == nil {
		tarball, err := fetchNPM(ctx, c, npm, dir)
		if err == nil {
			return tarball, "npm", nil
		}
		errs = append(errs, err)
	}
	if c.RegistryURL != "" {
		base := filepath.Base(libPackage) + "-" + libVersion + ".tgz"
		address := strings.TrimSuffix(c.RegistryURL, "/") + "/" + libPackage + "/-/" + base
		tarball := filepath.Join(dir, base)
		c.progress("Fetching the ClickHouse engine (%d MB) from %s, once", libPacked, c.RegistryURL)
		err := host.Download(ctx, address, tarball, func(done int64) { c.fetched(done) })
		if err == nil {
			return tarball, address, nil
		}
		errs = append(errs, err)
	}
	return "", "", errors.Join(append([]error{fmt.Errorf(
		"%w: install npm (Debian: apt-get install npm), or name the address of a running ClickHouse, the path of a libchdb.so 26.6 or later, the tarball of %s@%s or a registry that has it",
		ErrNoLibrary, libPackage, libVersion)}, errs...)...)
}

func (c Config) fetched(done int64) {
	c.progress("Fetching the ClickHouse engine: %d of %d MB", min(done/1_000_000, libPacked), libPacked)
}

// fetchNPM lets npm fetch the package, because it knows the user's registry,
// proxy and credentials. Its cache is thrown away: a second copy would be kept
// there for nothing.
func fetchNPM(ctx context.Context, c Config, npm, dir string) (string, error) {
	c.progress("Fetching the ClickHouse engine (%d MB) with npm, once", libPacked)
	cmd := exec.CommandContext(ctx, npm, "pack", libPackage+"@"+libVersion,
		"--ignore-scripts", "--silent", "--pack-destination", dir, "--cache", filepath.Join(dir, "cache"))
	cmd.Dir = dir
	cmd.WaitDelay = time.Second // npm's own children must not keep us waiting after a cancel
	var out []byte
	ended := make(chan error, 1)
	go func() {
		var err error
		out, err = child.Output(cmd)
		ended <- err
	}()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				return "", fmt.Errorf("npm pack: %w: %.500s", err, bytes.TrimSpace(out))
			}
			found, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
			if err != nil || len(found) != 1 {
				return "", fmt.Errorf("npm pack left %d packages (%w)", len(found), err)
			}
			return found[0], nil
		case <-tick.C: // npm says nothing: look at what it writes
			c.fetched(largestFile(dir))
		}
	}
}

// largestFile below dir, in bytes. What vanishes meanwhile does not count.
func largestFile(dir string) int64 {
	var largest int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				largest = max(largest, fi.Size())
			}
		}
		return nil
	})
	return largest
}

// check compares a tarball with a checksum in npm's form, sha512-<base64>.
func check(tarball, from, integrity string) error {
	f, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha512.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read %s: %w", tarball, err)
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(h.Sum(nil)); got != integrity {
		return fmt.Errorf("%s@%s from %s is not the pinned one: its checksum is %s, expected %s", libPackage, libVersion, from, got, integrity)
	}
	return nil
}

// extract writes the library to dst.
func extract(tarball, dst string) error {
	f, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("open %s: %w", tarball, err)
	}
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", libFile, tarball, err)
		}
		if h.Name != libFile {
			continue
		}
		w, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, tr)
		// Synced, because a machine that goes down now must not leave a file that
		// looks complete: it is not checked again.
		return errors.Join(err, w.Sync(), w.Close())
	}
}
